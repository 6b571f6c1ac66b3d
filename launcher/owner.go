package launcher

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"github.com/vmlatch/vmlatch/firmware/sev/exchange"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// AskOwner runs the command that the spec names for its owner: the measurement
// goes to its standard input, the packet comes from its standard output. What
// it writes to its standard error goes to stderr. What it starts ends with it: all of
// it holds a lock by which the next command finds it if this process is killed.
func (m *Machine) AskOwner(
	ctx context.Context, g *tee.Guest, measurement *exchange.Measurement, stderr io.Writer,
) (*exchange.Packet, error) {
	step(ctx, "owner")
	ctx, cancel := context.WithTimeout(ctx, time.Duration(g.Latch.Timeout))
	defer cancel()
	in, err := json.MarshalIndent(measurement, "", "  ")
	if err != nil {
		return nil, err
	}
	argv := g.Latch.Owner
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = g.File.Dir
	cmd.Stdin = bytes.NewReader(in)
	cmd.Stderr = stderr
	lock, err := m.dir.LockOwner()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	cmd.ExtraFiles = []*os.File{lock}
	cmd.Cancel = func() error {
		return errors.Join(cmd.Process.Kill(), m.dir.KillOwner(context.Background()))
	}
	cmd.WaitDelay = time.Second
	runtime.LockOSThread() // the command ends with the thread that started it
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out limitedBuffer
	cmd.Stdout = &out
	if err = cmd.Run(); errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it has answered, and left something running
	}
	_ = lock.Close()
	err = errors.Join(err, m.dir.KillOwner(context.WithoutCancel(ctx)))
	if err != nil {
		kind := fault.Failure
		var exit *exec.ExitError
		switch {
		case errors.Is(ctx.Err(), context.DeadlineExceeded):
			err = fmt.Errorf("it did not answer within %v ([latch] timeout)", time.Duration(g.Latch.Timeout))
		case ctx.Err() != nil:
			err = ctx.Err()
		case errors.As(err, &exit) && exit.ExitCode() == refusedCode:
			kind = fault.Refused
		}
		return nil, ownerFailed(kind, argv[0], err)
	}
	p, err := exchange.ParsePacket(out.b.Bytes())
	if err != nil {
		return nil, ownerFailed(fault.Failure, argv[0], err)
	}
	return p, nil
}

// refusedCode is the exit code of a command, such as latchkey, that refuses a
// measurement.
const refusedCode = 4

func ownerFailed(kind fault.Kind, command string, err error) error {
	return &fault.Error{
		Kind: kind, Op: "the owner's command " + command + " gave no secret", Err: err,
		Fix: "the VM was ended; nothing of it is left",
	}
}

// limitedBuffer refuses more than a packet can have.
type limitedBuffer struct{ b bytes.Buffer }

func (l *limitedBuffer) Write(p []byte) (int, error) {
	if l.b.Len()+len(p) > exchange.MaxFile {
		return 0, fmt.Errorf("more than %d bytes", exchange.MaxFile)
	}
	return l.b.Write(p)
}
