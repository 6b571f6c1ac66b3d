package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"time"

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
		Name:         "console",
		Usage:        "attach to a VM's serial console",
		ArgsUsage:    "NAME",
		Category:     catLook,
		BashComplete: completeAlive,
		Description: `Ctrl-] detaches; the VM goes on. One client can be attached at a time. Where standard
output is not a terminal, control characters of the guest are escaped. At the end of
its input it goes on showing what the guest writes.

A serial line does not carry the size of a window. "resize" (of xterm), run in the
guest, asks this terminal for it. With --resize the command that sets it is typed for
you, now and whenever the window changes: use it at a shell's prompt.

Examples:

   vmlatch console guest
   vmlatch console --resize guest`,
		Flags: hostFlags(
			&urfave.BoolFlag{Name: "resize", Usage: `type "stty rows … cols …" when the window's size changes`}),
		Action: func(c *urfave.Context) error {
			args, err := cli.Args(c, "NAME")
			if err != nil {
				return err
			}
			root, _, err := vms(c, s)
			if err != nil {
				return err
			}
			console, err := openConsole(c.Context, root, args[0])
			if err != nil {
				return err
			}
			defer console.Close()
			if s.OutIsTerminal() {
				s.Say("attached to %s; Ctrl-] detaches", args[0])
			} else if c.Bool("resize") {
				return cli.Usagef("--resize: there is no terminal")
			}
			if console.held {
				s.Say("%s: nothing of the guest has run yet", args[0])
			}
			err = showConsole(c.Context, s, console, c.Bool("resize"))
			if s.OutIsTerminal() {
				fmt.Fprintln(s.Err) // the guest's line goes on otherwise
			}
			if errors.Is(err, errDetached) {
				s.Say("detached from %s", args[0])
				return nil
			}
			if err == nil {
				s.Say("the console of %s is closed: the VM has ended, or is ending", args[0])
			}
			return err
		},
	}
}

// attachedConsole is a console to which no other client can attach meanwhile.
type attachedConsole struct {
	net.Conn
	lock *os.File
	held bool // the guest is not released yet
}

func (a *attachedConsole) Close() error { return errors.Join(a.Conn.Close(), a.lock.Close()) }

func openConsole(ctx context.Context, root rundir.Root, name string) (*attachedConsole, error) {
	d, e, err := root.Find(ctx, name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if !e.VMHeld {
		return nil, fmt.Errorf("%s: %w", name, rundir.ErrNotFound)
	}
	lock, err := d.LockConsole()
	if errors.Is(err, rundir.ErrBusy) {
		return nil, cli.Fail(cli.ExitFailure, fmt.Errorf("%s: another client is attached to its console", name),
			fmt.Sprintf(`"vmlatch logs --follow %s" only looks`, name))
	}
	if err != nil {
		return nil, err
	}
	c, err := net.Dial("unix", d.Path(rundir.ConsoleSocket))
	if err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("%s: console: %w", name, err)
	}
	return &attachedConsole{c, lock, e.Record != nil && e.Record.Released == nil}, nil
}

// showConsole copies between the console and this program's streams until the
// guest ends, the user detaches or the context ends. On a terminal the bytes
// pass as they are, for the guest draws on it; elsewhere they are escaped.
func showConsole(ctx context.Context, s *cli.IO, console io.ReadWriter, resize bool) error {
	escaped := &cli.EscapeWriter{W: s.Out}
	var out io.Writer = escaped
	keys := newTypist(console)
	if in, ok := s.In.(*os.File); ok && term.IsTerminal(int(in.Fd())) && s.OutIsTerminal() {
		out, keys.lossy = s.Out, true
		if old, err := term.MakeRaw(int(in.Fd())); err == nil {
			defer func() { _ = term.Restore(int(in.Fd()), old) }()
		}
		if resize {
			defer typeSizes(keys, in)()
		}
	}
	typed := make(chan error, 1)
	if s.In != nil {
		go func() { typed <- copyKeys(ctx, keys, s.In) }()
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
				keys.flush()
				return err
			}
			typed = nil // end of input: go on showing
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// typist types into a console. A guest that does not listen holds no terminal up: what
// it does not take in is kept, up to a limit, and then lost, as on a serial line.
type typist struct {
	lossy bool // else writers wait: what comes from a file is not lost
	queue chan []byte
	idle  chan struct{} // closed when all is typed, after flush
}

const (
	maxTyped  = 1 << 10 // pieces of up to 1 KiB
	flushTime = 200 * time.Millisecond
)

func newTypist(console io.Writer) *typist {
	t := &typist{queue: make(chan []byte, maxTyped), idle: make(chan struct{})}
	go func() { // ends with the program, or with the console
		for b := range t.queue {
			if b == nil {
				close(t.idle)
				return
			}
			if _, err := console.Write(b); err != nil {
				return
			}
		}
	}()
	return t
}

func (t *typist) Write(b []byte) (int, error) {
	piece := bytes.Clone(b)
	if !t.lossy {
		t.queue <- piece
		return len(b), nil
	}
	select {
	case t.queue <- piece:
	default: // lost
	}
	return len(b), nil
}

// flush gives what was typed a moment to arrive.
func (t *typist) flush() {
	select {
	case t.queue <- nil:
	default:
		return
	}
	select {
	case <-t.idle:
	case <-time.After(flushTime):
	}
}

// typeSizes types the command that tells a shell in the guest the terminal's size,
// now and after each change, until stop is called.
func typeSizes(keys io.Writer, terminal *os.File) (stop func()) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	changed <- unix.SIGWINCH
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range changed {
			if cols, rows, err := term.GetSize(int(terminal.Fd())); err == nil && rows > 0 && cols > 0 {
				_, _ = fmt.Fprintf(
					keys,
					" stty rows %d cols %d\r",
					rows,
					cols,
				) // the space keeps it out of the shell's history
			}
		}
	}()
	return func() {
		signal.Stop(changed)
		close(changed)
		<-done
	}
}

// copyKeys passes input on until the escape key or the end of input. A read that is
// under way when the context ends is abandoned.
func copyKeys(ctx context.Context, keys io.Writer, from io.Reader) error {
	buf := make([]byte, 1024)
	for ctx.Err() == nil {
		n, err := from.Read(buf)
		if i := bytes.IndexByte(buf[:n], escapeKey); i >= 0 {
			_, _ = keys.Write(buf[:i])
			return errDetached
		}
		if n > 0 {
			_, _ = keys.Write(buf[:n])
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
