package swtpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/tpm"
	"github.com/vmlatch/vmlatch/qmp"
)

// Commands of the control channel (swtpm, include/swtpm/tpm_ioctl.h).
const (
	cmdInit      = 0x02
	cmdShutdown  = 0x03
	cmdSetDataFD = 0x10
)

// ErrTPM is wrapped by errors of swtpm, and of the TPM that it emulates.
var ErrTPM = errors.New("swtpm")

// process is a swtpm without a QEMU. It is for one goroutine at a time.
type process struct {
	cmd     *exec.Cmd
	control *net.UnixConn
	data    *tpm.Conn
	life    *os.File // the writing end
	said    strings.Builder
}

// timeout bounds each command of the control channel.
const timeout = 30 * time.Second

// run starts swtpm on a state directory, whose TPM it starts. keeper is the program that starts it,
// see [Main]; more is added to its command line.
func run(
	ctx context.Context, keeper []string, program string, state *os.File, key []byte, more ...string,
) (p *process, err error) {
	p = &process{}
	var theirs []*os.File
	let := func() { // or the end of swtpm would not be seen
		for _, f := range theirs {
			_ = f.Close()
		}
		theirs = nil
	}
	defer func() {
		let()
		if err != nil {
			p.kill()
		}
	}()
	control, child, err := qmp.Pair()
	if err != nil {
		return p, err
	}
	theirs = append(theirs, child)
	p.control, _ = control.(*net.UnixConn)
	read, write, err := os.Pipe()
	if err != nil {
		return p, err
	}
	theirs, p.life = append(theirs, read), write
	files := []*os.File{child, read, state}
	const first = 3 // the number of ExtraFiles[0]
	fds := Descriptors{Control: first, Life: first + 1, State: first + 2}
	if key != nil {
		pipe, err := KeyPipe(key)
		if err != nil {
			return p, err
		}
		theirs, files, fds.Key = append(theirs, pipe), append(files, pipe), first+len(files)
	}
	argv := KeptArgv(keeper, program, fds, more...)
	p.cmd = exec.CommandContext(ctx, argv[0], argv[1:]...)
	p.cmd.ExtraFiles = files
	p.cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // Ctrl-C is for this process, which ends it
	p.cmd.Stdout, p.cmd.Stderr = &p.said, &p.said
	if err := p.cmd.Start(); err != nil {
		return p, fmt.Errorf("%w: %w", ErrTPM, err)
	}
	let()
	data, child, err := qmp.Pair()
	if err != nil {
		return p, err
	}
	theirs, p.data = append(theirs, child), tpm.New(data)
	if err := p.command(cmdSetDataFD, nil, child); err != nil {
		return p, err
	}
	let()
	return p, p.command(cmdInit, make([]byte, 4), nil)
}

// command sends a command to the control channel, with a descriptor or none, and reads the result.
// A swtpm that fails is ended.
func (p *process) command(number uint32, args []byte, pass *os.File) error {
	_ = p.control.SetDeadline(time.Now().Add(timeout))
	var rights []byte
	if pass != nil {
		rights = unix.UnixRights(int(pass.Fd()))
	}
	_, _, err := p.control.WriteMsgUnix(append(binary.BigEndian.AppendUint32(nil, number), args...), rights, nil)
	result := make([]byte, 4)
	if err == nil {
		_, err = io.ReadFull(p.control, result)
	}
	if code := binary.BigEndian.Uint32(result); err == nil && code != 0 {
		err = fmt.Errorf("it answers command %#x with %#x", number, code)
	}
	if err != nil {
		p.kill() // and waited for, so that its words are complete
		return fmt.Errorf("%w: %w%s", ErrTPM, err, p.words())
	}
	return nil
}

// words are those that swtpm has written.
func (p *process) words() string {
	if text := strings.TrimSpace(p.said.String()); text != "" {
		return " (it wrote: " + strings.ReplaceAll(text, "\n", "; ") + ")"
	}
	return ""
}

// Send is that of go-tpm's transport.TPM.
func (p *process) Send(command []byte) ([]byte, error) {
	answer, err := p.data.Send(command)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTPM, err)
	}
	return answer, nil
}

// stop lets swtpm write its state and waits for its end.
func (p *process) stop() error {
	if err := p.command(cmdShutdown, nil, nil); err != nil {
		return err
	}
	defer p.kill()
	_ = p.control.Close()
	_ = p.data.Close()
	cmd := p.cmd
	p.cmd = nil // is waited for here
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case <-done:
		return nil
	case <-time.After(timeout):
		_ = cmd.Process.Kill()
		<-done
		return fmt.Errorf("%w: it does not end", ErrTPM)
	}
}

// kill ends swtpm, if it runs.
func (p *process) kill() {
	if p.cmd != nil && p.cmd.Process != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		p.cmd = nil
	}
	if p.control != nil {
		_ = p.control.Close()
	}
	if p.data != nil {
		_ = p.data.Close()
	}
	if p.life != nil {
		_ = p.life.Close()
		p.life = nil
	}
}
