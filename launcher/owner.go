package launcher

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	ctx context.Context, g *tee.Guest, measurement *exchange.Measurement, opt StartOptions,
) (*exchange.Packet, error) {
	m.takes(ctx, "owner")
	ctx, cancel := context.WithTimeout(ctx, time.Duration(g.Latch.Timeout))
	defer cancel()
	in, err := json.MarshalIndent(measurement, "", "  ")
	if err != nil {
		return nil, err
	}
	argv := g.Latch.Owner
	cmd, err := ownerCommand(ctx, argv, g.File.Dir, opt.OwnerKeeper)
	if err != nil {
		return nil, ownerFailed(fault.Failure, argv[0], err)
	}
	cmd.Stdin = bytes.NewReader(in)
	cmd.Stderr = opt.OwnerStderr
	lock, err := m.dir.LockOwner()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	cmd.ExtraFiles = []*os.File{lock}
	cmd.Cancel = func() error {
		if len(opt.OwnerKeeper) > 0 { // it ends what the command has started
			return cmd.Process.Signal(syscall.SIGTERM)
		}
		return errors.Join(cmd.Process.Kill(), m.dir.KillOwner(context.Background()))
	}
	cmd.WaitDelay = ownerDelay
	runtime.LockOSThread() // the command ends with the thread that started it
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if len(opt.OwnerKeeper) > 0 {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
	}
	var out limitedBuffer
	cmd.Stdout = &out
	err = cmd.Start()
	_ = lock.Close() // the command has its own; ours would look like a process of it
	if err == nil {
		err = cmd.Wait()
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it has answered, and left something running
	}
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

// ownerDelay is how long a command that was ended may take to be gone.
const ownerDelay = 3 * time.Second

// ownerCommand is the command that is run: the owner's, or the keeper with the owner's
// behind it.
func ownerCommand(ctx context.Context, argv []string, dir string, keeper []string) (*exec.Cmd, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	if len(keeper) == 0 || cmd.Err != nil {
		return cmd, cmd.Err
	}
	program := cmd.Path // found in PATH; a relative one starts from the spec's directory
	cmd = exec.CommandContext(
		ctx,
		keeper[0],
		append(append(keeper[1:len(keeper):len(keeper)], program), argv[1:]...)...)
	cmd.Dir = dir
	return cmd, nil
}

// refusedCode is the exit code of a command, such as latchkey, that refuses a
// measurement.
const refusedCode = 4

func ownerFailed(kind fault.Kind, command string, err error) error {
	return &fault.Error{
		Kind: kind, Op: "the owner's command " + command + " gave no secret", Err: err,
		Fix: "its own messages say why; the VM was ended before its guest ran",
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
