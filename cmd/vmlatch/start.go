package main

import (
	"context"
	"runtime"

	urfave "github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher"
)

func newStart(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name:      "start",
		Usage:     "start a VM, take it through measurement and release, and exit",
		ArgsUsage: "FILE… | --all DIR",
		Category:  catRun,
		Description: `Start the VM that FILE describes, or several, some at once. With --hold it
stays paused: nothing of the guest runs until "vmlatch release". Without --hold
the spec must say how the latch opens: a broker, an owner's command, or
until = "nothing".

With --all DIR every spec of the directory (*.toml) is started that is not running
yet, some at once. One that fails does not keep the others from starting.

A service manager that waits for the start (Type=notify) is told when it is done,
and that QEMU is the unit's main process: see "vmlatch help systemd".

Examples:

   vmlatch start examples/sev/guest.toml --emulate --hold
   vmlatch start examples/plain/guest.toml
   vmlatch start --all /etc/vmlatch/vms`,
		Flags: hostFlags(
			&urfave.BoolFlag{Name: "hold", Usage: "stop while paused"},
			emulateFlag(),
			explainChoiceFlag(),
			slotWaitFlag(),
			&urfave.StringFlag{Name: "name", Usage: "call the VM `NAME` instead of what the spec says"},
			&urfave.BoolFlag{Name: "all", Usage: "start every spec of a directory"},
			jobsFlag(),
			jsonFlag(),
			&urfave.StringFlag{
				Name:   "stop-at",
				Usage:  "stop this process (SIGSTOP) before `STEP`, for tests",
				Hidden: true,
			},
		),
		Action: func(c *urfave.Context) error {
			l, err := newLaunch(c, s)
			if err != nil {
				return err
			}
			l.hold = c.Bool("hold")
			c.Context = stoppingAt(c.Context, c.String("stop-at"))
			if c.Bool("all") || c.NArg() > 1 {
				return startAll(c, l.alone())
			}
			if c.Bool("json") && c.NArg() == 1 {
				return startAll(c, l)
			}
			defer func() { l.early.Close() }()
			p, err := prepare(c, s, l.forkEarly)
			if err != nil {
				return err
			}
			rec, err := l.start(c.Context, p)
			if err != nil {
				return err
			}
			l.say(&rec)
			return nil
		},
	}
}

// prepare works a start out; what dead VMs left is cleared away first. begin, if not nil, is called
// when this process is the VM's user's.
func prepare(c *urfave.Context, s *cli.IO, begin func(emulate bool)) (*launcher.Plan, error) {
	args, err := cli.Args(c, "FILE")
	if err != nil {
		return nil, err
	}
	root, h, err := ownVMs(c, s.Say)
	if err != nil {
		return nil, err
	}
	if begin != nil {
		begin(c.Bool("emulate"))
	}
	sweep(c.Context, s, root)
	p, err := loadPlan(c, h, args[0])
	if err != nil {
		return nil, err
	}
	sayChoices(s, p, c.Bool("explain-choice"))
	return p, nil
}

// sayChoices tells what was chosen: all of it, or only the technology where there was
// a choice.
func sayChoices(s *cli.IO, p *launcher.Plan, all bool) {
	for i, ch := range p.Choices {
		if all || i == 0 && p.Several() {
			s.Say("%s: %s is %s: %s", p.Name, ch.What, ch.Value, ch.From)
		}
	}
}

// stoppingAt stops this process before a step; "" is none.
func stoppingAt(ctx context.Context, at string) context.Context {
	t := launcher.TraceOf(ctx)
	traced := t.Step
	t.Step = func(step string) {
		traced(step)
		if step == at {
			runtime.LockOSThread() // a signal to the thread stops it here, one to the process soon
			_ = unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGSTOP)
			runtime.UnlockOSThread()
		}
	}
	return launcher.WithTrace(ctx, t)
}
