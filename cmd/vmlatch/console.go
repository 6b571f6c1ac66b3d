package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	urfave "github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// escapeKey leaves a console: Ctrl-], as telnet and virsh have it.
const escapeKey = 0x1d

var errDetached = errors.New("detached")

func newConsole(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "console", Usage: "attach to a VM's serial console", ArgsUsage: "NAME", Category: catLook, BashComplete: completeNames,
		Description: `Ctrl-] detaches. One client can be attached at a time. Where standard output is
no terminal, control characters of the guest are escaped.

Example:

   vmlatch console guest`,
		Flags: hostFlags(),
		Action: func(c *urfave.Context) error {
			args, err := cli.Args(c, "NAME")
			if err != nil {
				return err
			}
			root, _, err := vms(c, s)
			if err != nil {
				return err
			}
			console, err := openConsole(root, args[0])
			if err != nil {
				return err
			}
			defer console.Close()
			if s.OutIsTerminal() {
				s.Say("attached to %s; Ctrl-] detaches", args[0])
			}
			err = showConsole(c.Context, s, console)
			if errors.Is(err, errDetached) {
				return nil
			}
			return err
		},
	}
}

func openConsole(root rundir.Root, name string) (net.Conn, error) {
	d, e, err := root.Find(name)
	if err != nil {
		return nil, err
	}
	if !e.VMHeld {
		return nil, fmt.Errorf("%s: %w", name, rundir.ErrNotFound)
	}
	c, err := net.Dial("unix", d.Path(rundir.ConsoleSocket))
	if err != nil {
		return nil, fmt.Errorf("%s: console: %w", name, err)
	}
	return c, nil
}

// showConsole copies between the console and this program's streams until the
// guest ends, the user detaches or the context ends. On a terminal the bytes
// pass as they are, for the guest draws on it; elsewhere they are escaped.
func showConsole(ctx context.Context, s *cli.IO, console io.ReadWriter) error {
	escaped := &cli.EscapeWriter{W: s.Out}
	var out io.Writer = escaped
	if in, ok := s.In.(*os.File); ok && term.IsTerminal(int(in.Fd())) && s.OutIsTerminal() {
		out = s.Out
		if old, err := term.MakeRaw(int(in.Fd())); err == nil {
			defer func() { _ = term.Restore(int(in.Fd()), old) }()
		}
	}
	typed := make(chan error, 1)
	if s.In != nil {
		go func() { typed <- copyKeys(ctx, console, s.In) }()
	}
	printed := make(chan error, 1)
	go func() {
		_, err := io.Copy(out, console)
		_ = escaped.Flush()
		printed <- err
	}()
	for {
		select {
		case err := <-printed:
			if isGone(err) {
				err = nil
			}
			return err
		case err := <-typed:
			if errors.Is(err, errDetached) {
				return err
			}
			typed = nil // end of input: go on showing
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// copyKeys passes input on until the escape key, a broken console or the end
// of input. A read that is under way when the context ends is abandoned.
func copyKeys(ctx context.Context, to io.Writer, from io.Reader) error {
	buf := make([]byte, 1024)
	for ctx.Err() == nil {
		n, err := from.Read(buf)
		if i := bytes.IndexByte(buf[:n], escapeKey); i >= 0 {
			_, _ = to.Write(buf[:i])
			return errDetached
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

func isGone(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}
