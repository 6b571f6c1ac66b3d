// Package swtpm deals with the TPM emulator swtpm: where it is, what it leaves on disk, how it
// learns that its QEMU has gone, and how a new TPM is made: its banks, keys, certificates and
// counter.
//
// Files: swtpm.go finds it and ties it to QEMU, process.go talks to one without a QEMU,
// manufacture.go makes a TPM and ca.go signs for it.
//
// Sources: swtpm(8); swtpm, src/swtpm/swtpm_nvstore.c (the header of its state).
package swtpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/confine"
)

// Program is the name of swtpm's program.
const Program = "swtpm"

// Find finds swtpm in PATH.
func Find() (string, error) {
	path, err := exec.LookPath(Program)
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}

// Descriptors are those that swtpm inherits, by their numbers there.
type Descriptors struct {
	Life    int // the end of a pipe: see [Main]
	State   int // the directory of its state
	Control int // a socket for its control channel
	Key     int // a pipe with the key of its state; 0 for none
}

// KeptArgv is the command line of a swtpm that keeper starts, see [Main]; more is added.
func KeptArgv(keeper []string, program string, fd Descriptors, more ...string) []string {
	return append(append(slices.Clone(keeper), strconv.Itoa(fd.Life)), Argv(program, fd, more...)...)
}

// Argv is the command line of a swtpm that ends with its control channel; more is added.
func Argv(program string, fd Descriptors, more ...string) []string {
	argv := append([]string{program}, "socket", "--tpm2",
		"--tpmstate", fmt.Sprintf("dir=/proc/self/fd/%d,mode=0600", fd.State),
		"--ctrl", fmt.Sprintf("type=unixio,clientfd=%d", fd.Control), "--terminate")
	if fd.Key != 0 {
		argv = append(argv, "--key", fmt.Sprintf("fd=%d,mode=aes-256-cbc,format=binary", fd.Key))
	}
	return append(argv, more...)
}

// KeyPipe makes a pipe that holds a key, which swtpm inherits.
func KeyPipe(key []byte) (*os.File, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe", err)
	}
	out, in := os.NewFile(uintptr(fds[1]), "tpm-key"), os.NewFile(uintptr(fds[0]), "tpm-key")
	_, err := out.Write(key)
	if err = errors.Join(err, out.Close()); err != nil {
		_ = in.Close()
		return nil, err
	}
	return in, nil
}

// ErrState is wrapped by errors about files that do not hold the state of a TPM.
var ErrState = errors.New("the TPM's state is damaged")

// Encrypted reports whether a TPM's state, which a file holds, is encrypted. The error wraps
// [fs.ErrNotExist] if there is none.
func Encrypted(file string) (bool, error) {
	const headerSize, flagEncrypted = 10, 1
	f, err := os.OpenFile(file, unix.O_NOFOLLOW|unix.O_NONBLOCK, 0) // swtpm may put there what it likes
	if err != nil {
		return false, err
	}
	defer f.Close()
	header := make([]byte, headerSize)
	if _, err := io.ReadFull(f, header); err != nil {
		return false, fmt.Errorf("%s: %w", file, ErrState)
	}
	be := binary.BigEndian
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	if be.Uint16(header[2:]) != headerSize || int64(be.Uint32(header[6:])) != info.Size() {
		return false, fmt.Errorf("%s: %w", file, ErrState)
	}
	return be.Uint16(header[4:])&flagEncrypted != 0, nil
}

// Main starts swtpm in the place of this process, by a command line: the number of a pipe's end,
// then the program and its arguments. When the last process that holds the other end is gone, the
// kernel kills it: swtpm itself would wait for ever for a QEMU that has died before it used it.
// SIGTERM would not do: swtpm forgets one that comes while it starts. Nothing is lost, for it
// replaces its state before it answers a command. Main returns an exit code only if it fails.
func Main(args []string) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "vmlatch: swtpm:", err)
		return 1
	}
	if len(args) < 2 {
		return fail(errors.New("no command"))
	}
	life, err := strconv.Atoi(args[0])
	if err != nil {
		return fail(err)
	}
	if err := confine.EndWith(life); err != nil {
		return fail(err)
	}
	return fail(&fs.PathError{Op: "exec", Path: args[1], Err: unix.Exec(args[1], args[1:], os.Environ())})
}
