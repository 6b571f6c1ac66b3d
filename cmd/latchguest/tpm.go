package main

import (
	"errors"
	"io"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/smallfmt"
)

// helper is the program that talks to the guest's TPM. It is in no initrd that needs none.
const helper = "/usr/bin/latchguest-tpm"

// tpmWord is the word of the measured command line by which a disk is opened by the TPM: the
// secret's pin, or that there is none.
const (
	tpmWord  = "latch.tpm="
	unpinned = "unpinned"
	pinSize  = 32
)

// ofTPM reports whether arguments are a command for the helper.
func ofTPM(args []string) bool {
	if len(args) == 0 {
		return false
	}
	switch args[0] {
	case "unseal", "quote", "identity", "activate", "revoke":
		return true
	}
	return false
}

// runHelper runs the helper in this program's place.
func (g *guest) runHelper(args []string) int {
	pid, err := g.startHelper(args, 1)
	if err != nil {
		g.say("%v", err)
		return 1
	}
	return wait(pid)
}

// startHelper starts the helper, whose results go to a descriptor.
func (g *guest) startHelper(args []string, out int) (int, error) {
	pid, err := syscall.ForkExec(g.helper, append([]string{g.helper}, args...), &syscall.ProcAttr{
		Env: environment, Files: []uintptr{0, uintptr(out), 2},
	})
	if err != nil {
		err = smallfmt.Errorf("%s: %w", g.helper, err)
	}
	return pid, err
}

var environment = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}

// pinOf is the pin of a command line by which the TPM opens the disk.
func pinOf(line string) (string, error) {
	pin, _ := valueOf(line, tpmWord)
	if _, broker := valueOf(line, "latch.key="); broker || len(pin) != pinSize && pin != unpinned {
		return "", errors.New("the command line needs latch.tpm=PIN, and no broker: a TPM is the host's")
	}
	return pin, nil
}

// unsealed opens the disk with what the TPM gives. A host that is not trusted has a guest of
// another kind, with a broker.
func (g *guest) unsealed(o *options, line string) error {
	pin, err := pinOf(line)
	if err != nil {
		return err
	}
	end, stop, err := g.guard(o, line)
	if err != nil {
		return err
	}
	defer stop()
	device, err := g.disk(o.device, end)
	if err != nil {
		return err
	}
	defer device.Close()
	header, err := g.copyHeader(device, "")
	if err != nil {
		return err
	}
	defer unix.Unlink(header)
	secret, err := g.unseal(header, pin)
	if err == nil {
		err = g.openVolume(header, o, secret)
	}
	clear(secret)
	return err
}

// vtpm is the guest's TPM, which its host has made. It is asked by guest.ask; with the guest itself
// all types of its fields would be linked.
type vtpm struct {
	ask func(args ...string) ([]byte, error)
}

func (v *vtpm) technology() string { return exchange.VTPM }

func (v *vtpm) report(data [64]byte) (*evidence, error) {
	b, err := v.ask("attest", smallfmt.Hex(data[:]))
	return &evidence{evidence: b}, err
}

// unseal unseals what a header has. The helper closes the TPM for the rest of this boot before it
// gives the secret.
func (g *guest) unseal(header, pin string) ([]byte, error) {
	args := []string{"unseal", "--close", "--rewrite", "--header", header}
	if pin != unpinned {
		args = append(args, "--pin", pin)
	}
	return g.ask(args...)
}

// maxPrinted bounds what the helper prints, in bytes.
const maxPrinted = 256 << 10

// ask runs the helper, and returns what it prints.
func (g *guest) ask(args ...string) ([]byte, error) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	r := file(pipe[0])
	defer r.Close()
	pid, err := g.startHelper(args, pipe[1])
	_ = unix.Close(pipe[1])
	if err != nil {
		return nil, err
	}
	out := make([]byte, maxPrinted)
	n, err := io.ReadFull(r, out)
	whole := err == io.EOF || err == io.ErrUnexpectedEOF //nolint:errorlint // as ReadFull returns them
	if code := wait(pid); code != 0 || !whole {
		clear(out)
		return nil, smallfmt.Errorf("%s ended with code %d", g.helper, code)
	}
	return out[:n], nil
}

// wait waits for a program, and returns its exit code.
func wait(pid int) int {
	var status unix.WaitStatus
	for {
		if _, err := unix.Wait4(pid, &status, 0, nil); err == nil {
			break
		} else if !errors.Is(err, unix.EINTR) {
			return -1
		}
	}
	return status.ExitStatus() // -1 after a signal
}

// guard makes sure that nothing comes in besides, and that there is an end in time.
func (g *guest) guard(o *options, line string) (end time.Time, stop func(), err error) {
	if open := g.doors(line, o.volume); open != nil {
		return end, nil, hint(errors.New("a person at the console could come in: "+open[0]),
			"change the command line or the initrd, and the policy's copies of them")
	}
	end = g.now().Add(o.timeout)
	if o.volume != "" && exists(g.volumes+"/"+o.volume) {
		return end, nil, hint(
			smallfmt.Errorf("%s/%s is there already, and latchguest has not opened it", g.volumes, o.volume),
			"nothing else in the initrd may open volumes: crypttab, rd.luks, LVM")
	}
	// Whatever hangs, such as a disk that the host does not read, ends.
	watch := time.AfterFunc(o.timeout+2*diskTime, func() { g.fail(errors.New("no end in time")) })
	return end, func() { watch.Stop() }, nil
}
