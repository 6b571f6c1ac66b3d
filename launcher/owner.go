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
)

// OwnerError is an owner's command that gave no packet.
type OwnerError struct {
	Command string
	Code    int // exit code; -1 if it did not run or was killed
	Err     error
}

func (e *OwnerError) Error() string {
	return fmt.Sprintf("the owner's command %s gave no secret: %v", e.Command, e.Err)
}

// Unwrap returns the cause.
func (e *OwnerError) Unwrap() error { return e.Err }

// AskOwner runs the command that the spec names for its owner: the measurement
// goes to its standard input, the packet comes from its standard output. What
// it writes to its standard error goes to stderr. What it starts ends with it: all of
// it holds a lock by which the next command finds it if this process is killed.
func (m *Machine) AskOwner(ctx context.Context, spec *Spec, measurement *exchange.Measurement, stderr io.Writer) (*exchange.Packet, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(spec.Latch.Timeout))
	defer cancel()
	in, err := json.MarshalIndent(measurement, "", "  ")
	if err != nil {
		return nil, err
	}
	argv := spec.Latch.Owner
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = spec.dir
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
		e := &OwnerError{Command: argv[0], Code: -1, Err: err}
		var exit *exec.ExitError
		switch {
		case ctx.Err() != nil:
			e.Err = ctx.Err()
			if errors.Is(e.Err, context.DeadlineExceeded) {
				e.Err = fmt.Errorf("it did not answer within %v ([latch] timeout)", time.Duration(spec.Latch.Timeout))
			}
		case errors.As(err, &exit):
			e.Code = exit.ExitCode()
		}
		return nil, e
	}
	p, err := exchange.ParsePacket(out.b.Bytes())
	if err != nil {
		return nil, &OwnerError{Command: argv[0], Code: 0, Err: err}
	}
	return p, nil
}

// limitedBuffer refuses more than a packet can have.
type limitedBuffer struct{ b bytes.Buffer }

func (l *limitedBuffer) Write(p []byte) (int, error) {
	if l.b.Len()+len(p) > exchange.MaxFile {
		return 0, fmt.Errorf("more than %d bytes", exchange.MaxFile)
	}
	return l.b.Write(p)
}
