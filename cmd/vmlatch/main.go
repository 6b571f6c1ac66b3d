// Command vmlatch starts QEMU virtual machines without libvirt and holds them
// paused until what was loaded into them has been verified.
package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"runtime"
	"runtime/debug"

	urfave "github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher"
	"github.com/vmlatch/vmlatch/launcher/confine"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/logkeeper"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/spec"
	"github.com/vmlatch/vmlatch/launcher/swtpm"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

func main() {
	if len(os.Args) > 2 {
		switch os.Args[1] {
		case keepOwner:
			os.Exit(keep(os.Args[2:]))
		case plan.KeepLogs:
			os.Exit(logkeeper.Main(os.Args[2:]))
		case plan.KeepTPM:
			os.Exit(swtpm.Main(os.Args[2:]))
		case plan.Stage:
			os.Exit(confine.Run(os.Args[2:]))
		}
	}
	os.Exit(int(cli.Start("vmlatch", func(s *cli.IO) *cli.App {
		settle()
		return newApp(s)
	})))
}

// settle prepares the process for a launch. A launcher waits most of its time, next to
// a QEMU that needs the processors to start: one thread at a time and no garbage
// collection before the heap is large take 3 % off a start.
func settle() {
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(64 << 20)
	// What a caller has left open is not for QEMU, which lives longer (Linux 5.11; on
	// older ones it is the caller's matter).
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
}

const long = `   A VM is described by a TOML file. Start it paused, let its owner check the
   measurement, hand over the secret, and only then let it run:

      vmlatch platform > platform.json         the owner makes a session of it
      vmlatch start guest.toml --hold
      vmlatch measure guest > measurement.json
      vmlatch inject guest packet.json
      vmlatch release guest

   Without SEV hardware, "--emulate" runs the same steps on an emulated platform.`

// Categories of commands in the help.
const (
	catRun  = "run a VM"
	catLook = "look"
	catOpen = "open the latch"
	catHost = "host"
)

func newApp(s *cli.IO) *cli.App {
	return &cli.App{
		Name:  "vmlatch",
		Usage: "start confidential VMs and hold them until they are verified",
		Long:  long, Version: cli.Version(), IO: s, Explain: explain, Topics: topics,
		Prepare:  func(ctx context.Context) (context.Context, error) { return withDebug(ctx, s) },
		Synonyms: synonyms, Values: values,
		Commands: []*urfave.Command{
			newStart(s), newRun(s), newStop(s), newRestart(s), newPause(s), newResume(s), newRm(s), newTPM(s),
			newPS(s), newInspect(s), newLogs(s), newEvents(s), newTimeline(s), newConsole(s), newSSH(s),
			newScreenshot(s), newWait(s),
			newPlatform(s), newMeasure(s), newInject(s), newRelease(s),
			newHost(s), newCheck(s), newPlan(s), newDisk(s), newQMP(s),
		},
	}
}

// synonyms are what other programs call the commands.
var synonyms = map[string]string{
	"list": "ps", "ls": "ps", "top": "ps", "create": "start", "shutdown": "stop", "destroy": "stop --now",
	"kill": "stop --now", "reboot": "restart", "undefine": "rm", "prune": "rm --all", "attach": "console",
	"suspend": "pause", "unpause": "resume", "show": "inspect", "dominfo": "inspect", "status": "inspect",
	"version": "--version",
}

// values are what options can be, for shell completion.
var values = map[string][]string{
	"kind": {"console", "events", "qemu"}, "format": {"text", "json", "nfd", "nomad"},
	"only": {
		"SHUTDOWN", "STOP", "RESUME", "RESET", "POWERDOWN", "GUEST_PANICKED", "MEMORY_FAILURE", launcher.EventEnded,
	},
}

// hostFlags are the flags of every command that touches VMs.
func hostFlags(more ...urfave.Flag) []urfave.Flag {
	return append(
		more,
		&urfave.StringFlag{
			Name:     "config",
			EnvVars:  []string{"VMLATCH_CONFIG"},
			Usage:    "read the host's settings from `FILE`",
			Category: "host settings",
		},
		&urfave.StringFlag{
			Name:     "run-dir",
			EnvVars:  []string{"VMLATCH_RUN_DIR"},
			Usage:    "keep locks and sockets in `DIR`",
			Category: "host settings",
		},
		&urfave.StringFlag{
			Name:     "state-dir",
			EnvVars:  []string{"VMLATCH_STATE_DIR"},
			Usage:    "keep logs in `DIR`",
			Category: "host settings",
		},
		&urfave.StringFlag{
			Name:     "cache-dir",
			EnvVars:  []string{"VMLATCH_CACHE_DIR"},
			Usage:    "keep what QEMU said of itself in `DIR`",
			Category: "host settings",
		},
	)
}

func emulateFlag() urfave.Flag {
	return &urfave.BoolFlag{Name: "emulate", Usage: "run on an emulated platform (swtee), which protects nothing"}
}

func jsonFlag() urfave.Flag {
	return &urfave.BoolFlag{Name: "json", Usage: "print JSON"}
}

// hostConfig reads the host's settings; flags override the file.
func hostConfig(c *urfave.Context) (*spec.HostConfig, error) {
	file, named := c.String("config"), true
	if file == "" {
		file, named = spec.HostConfigFile(), false
	}
	h, err := launcher.LoadHostConfig(file, named)
	if fault.As(err) != nil {
		return nil, err
	}
	if err != nil {
		return nil, cli.Fail(cli.ExitUsage, err)
	}
	if dir := c.String("run-dir"); dir != "" {
		h.RunDir = dir
	}
	if dir := c.String("state-dir"); dir != "" {
		h.StateDir = dir
	}
	if dir := c.String("cache-dir"); dir != "" {
		h.CacheDir = dir
	}
	return h, cli.Fail(cli.ExitUsage, h.MakeAbsolute())
}

// ownVMs reads the host's settings and becomes the owner of its VMs.
func ownVMs(c *urfave.Context, say func(string, ...any)) (rundir.Root, *spec.HostConfig, error) {
	h, err := hostConfig(c)
	if err != nil {
		return rundir.Root{}, nil, err
	}
	root := h.Root()
	return root, h, becomeOwner(root, say)
}

// vms is ownVMs, and clears away what dead VMs left.
func vms(c *urfave.Context, s *cli.IO) (rundir.Root, *spec.HostConfig, error) {
	root, h, err := ownVMs(c, nil)
	if err != nil {
		return root, nil, err
	}
	sweep(c.Context, s, root)
	return root, h, c.Context.Err()
}

// listVMs is vms, and returns those that are there, with one look at each.
func listVMs(c *urfave.Context, s *cli.IO, ended bool) (rundir.Root, []*rundir.Entry, error) {
	root, _, err := ownVMs(c, nil)
	if err != nil {
		return root, nil, err
	}
	l, err := root.SweepList(c.Context, ended)
	if err != nil {
		return root, nil, err
	}
	saySwept(s, l.Killed, l.Trouble)
	return root, l.Entries, c.Context.Err()
}

// sweep clears away what dead VMs left, and says so.
func sweep(ctx context.Context, s *cli.IO, root rundir.Root) {
	killed, _, err := root.Sweep(ctx)
	saySwept(s, killed, err)
}

func saySwept(s *cli.IO, killed []string, err error) {
	for _, name := range killed {
		s.Say("%s: ended: its launch was never finished", name)
	}
	if err != nil { // trouble with one VM must not stop work on another
		s.Say("cannot clear everything away: %v", err)
	}
}

// findVM finds the VM that a command's only argument names, also one that has ended.
func findVM(c *urfave.Context, s *cli.IO) (root rundir.Root, d *rundir.Dir, e *rundir.Entry, err error) {
	args, err := cli.Args(c, "NAME")
	if err != nil {
		return root, nil, nil, err
	}
	if root, _, err = vms(c, s); err != nil {
		return root, nil, nil, err
	}
	d, e, err = root.FindLogs(c.Context, args[0])
	return root, d, e, err
}

// attachArg is attach for commands whose only argument is NAME.
func attachArg(c *urfave.Context, s *cli.IO) (*launcher.Machine, error) {
	args, err := cli.Args(c, "NAME")
	if err != nil {
		return nil, err
	}
	return attach(c, s, args[0])
}

// attach takes control of a VM.
func attach(c *urfave.Context, s *cli.IO, name string) (*launcher.Machine, error) {
	root, _, err := vms(c, s)
	if err != nil {
		return nil, err
	}
	return launcher.Attach(c.Context, root, name)
}

// loadPlan reads a spec and works out its start.
func loadPlan(c *urfave.Context, h *spec.HostConfig, file string) (*launcher.Plan, error) {
	s, err := launcher.LoadSpec(file)
	if err != nil {
		return nil, err
	}
	if name := c.String("name"); name != "" {
		if s, err = s.Named(name); err != nil {
			return nil, err
		}
	}
	return planSpec(c, h, s, c.Bool("emulate"))
}

// planSpec works out the start of a spec.
func planSpec(c *urfave.Context, h *spec.HostConfig, s *tee.Spec, emulate bool) (*launcher.Plan, error) {
	facts, err := launcher.GatherFacts(c.Context, launcher.Config{Host: h, Emulate: emulate, Stage: stage()}, s)
	if err != nil {
		return nil, err
	}
	return launcher.NewPlan(s, facts, h.Root())
}

// completeNames lists all VMs for shell completion.
func completeNames(c *urfave.Context) { completeVMs(c, func(rundir.Status) bool { return true }) }

func completeAlive(c *urfave.Context) {
	completeVMs(c, func(s rundir.Status) bool { return s != rundir.Ended })
}

func completeEnded(c *urfave.Context) {
	completeVMs(c, func(s rundir.Status) bool { return s == rundir.Ended })
}

func completeVMs(c *urfave.Context, want func(rundir.Status) bool) {
	h, err := launcher.LoadHostConfig(spec.HostConfigFile(), false)
	if err != nil {
		return
	}
	for env, to := range map[string]*string{"VMLATCH_RUN_DIR": &h.RunDir, "VMLATCH_STATE_DIR": &h.StateDir} {
		if dir := os.Getenv(env); dir != "" {
			*to = dir
		}
	}
	if becomeOwner(h.Root(), nil) != nil {
		return
	}
	entries, err := h.Root().List(c.Context, true)
	if err != nil {
		return
	}
	for _, e := range entries {
		if want(e.Status()) {
			fmt.Fprintln(c.App.Writer, e.Name)
		}
	}
}

// label marks what passed through an emulator.
func label(emulated bool) string {
	if emulated {
		return " (emulated: protects nothing)"
	}
	return ""
}

// detached is a context for cleaning up after the user has interrupted.
func detached(ctx context.Context) context.Context { return context.WithoutCancel(ctx) }
