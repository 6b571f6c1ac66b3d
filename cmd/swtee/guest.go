package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	urfave "github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/swtee/guestdev"
)

func newGuest(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "guest", Usage: "in a test guest: give programs the interfaces that ask for reports and quotes",
		Description: `For test guests that run by "swtee --accel twin". It mounts an emulated configfs-tsm over
/sys/kernel/config and makes /dev/sev-guest, as a guest of SEV-SNP or TDX has them on
silicon, and returns once they can be used; a process in the background serves them. The
kernel needs FUSE, the modules configfs and, for /dev/sev-guest, cuse.

Put it into test initrds only: a guest that holds it believes whoever runs it.

Examples:

   swtee guest
   swtee guest --interface sev-guest
   swtee guest --foreground`,
		Flags: []urfave.Flag{
			&urfave.StringSliceFlag{
				Name: "interface",
				Usage: "make this `INTERFACE` only: configfs-tsm, sev-guest or rtmr; may be repeated. " +
					"If left out, those that a kernel like this one has on silicon",
			},
			&urfave.StringFlag{
				Name:  "configfs",
				Value: guestdev.DefaultConfigfs,
				Usage: "mount configfs-tsm over `DIR`",
			},
			&urfave.StringFlag{Name: "port", Usage: "talk to the platform by this `DEVICE`; if left out, look for it"},
			&urfave.StringFlag{Name: "log", Value: "/dev/kmsg", Usage: "say in `FILE` that this is emulated"},
			&urfave.BoolFlag{Name: "foreground", Usage: "serve in this process"},
			&urfave.IntFlag{Name: "ready-fd", Hidden: true},
		},
		Action: func(c *urfave.Context) error { return guest(c, s) },
	}
}

func guest(c *urfave.Context, s *cli.IO) error {
	if _, err := cli.Args(c); err != nil {
		return err
	}
	opt := guestdev.Options{Port: c.String("port"), Configfs: c.String("configfs"), Log: c.String("log")}
	for _, name := range c.StringSlice("interface") {
		i := guestdev.Interface(name)
		if !slices.Contains(guestdev.Interfaces(), i) {
			var names []string
			for _, known := range guestdev.Interfaces() {
				names = append(names, string(known))
			}
			return cli.Choice("interface", "interface", name, names)
		}
		opt.Interfaces = append(opt.Interfaces, i)
	}
	if !c.Bool("foreground") {
		return background(c.Context, s)
	}
	ctx, stop := signal.NotifyContext(c.Context, syscall.SIGHUP)
	defer stop()
	d, err := guestdev.Up(opt)
	if err != nil {
		return err
	}
	defer d.Close()
	if fd := c.Int("ready-fd"); fd > 0 {
		ready := os.NewFile(uintptr(fd), "ready")
		// Whoever waits for the end of what this prints, as $(swtee guest) does, waits no longer.
		if err := quiet(); err != nil {
			return err
		}
		_, err := ready.WriteString("ready " + d.About.Technology)
		if err = errors.Join(err, ready.Close()); err != nil {
			return err
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- d.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return nil
	}
}

// quiet lets go of the caller's output.
func quiet() error {
	null, err := unix.Open(os.DevNull, unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Dup2(null, 1), unix.Dup2(null, 2), unix.Close(null))
}

// background starts this program anew, and waits until the interfaces can be used.
func background(ctx context.Context, s *cli.IO) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	server := exec.Command(self, append(os.Args[1:], "--foreground", "--ready-fd", "3")...)
	server.ExtraFiles, server.Stderr = []*os.File{w}, os.Stderr
	server.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = server.Start()
	if err = errors.Join(err, w.Close()); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Process.Signal(unix.SIGTERM) })
	defer stop()
	b, err := io.ReadAll(r)
	if technology, ok := strings.CutPrefix(string(b), "ready "); ok && err == nil {
		fmt.Fprintf(s.Out, "swtee: EMULATED %s, served by process %d\n", technology, server.Process.Pid)
		return server.Process.Release()
	}
	err = server.Wait() // it has said why
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &cli.Error{Code: cli.ExitCode(exit.ExitCode()), Err: err, Quiet: true}
	}
	return err
}
