// Package escape is what a program tries that a guest has taken over: to reach what is not its own.
package escape

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Done is how an attempt ended that succeeded.
const Done = "done"

// Try makes attempts, each KIND:WHAT, and says how each ended: Done, or the error's name.
//
//	read, write, list, remove: a file or a directory
//	run: a program
//	unix, abstract, tcp, udp: a connection
//	kill, look: a process, by its pid
//	processes: any besides itself
//	unlock: every lock that is held through an open file
//	root: to become it
//	limit: of a process, by its pid
//	mode: of a file
//	modes, lease: of every file that is open
//	shut: to close every file that is open to others, by its mode
//	stay: when what it belongs to has gone, to live on
//	key: to look for one of its user's, by its description
//	vsock: a socket to virtual machines
//	ring: a ring of requests that no filter sees (io_uring)
//	traceme, memory, pidfd: what would read another process, on itself
//	x32: a system call by another number
//	core: a core dump
//	env: a variable of the environment, by its name
//	own: to read and write, through an open file, one that holds these words
func Try(attempts []string) map[string]string {
	said := map[string]string{}
	for _, a := range attempts {
		kind, what, _ := strings.Cut(a, ":")
		err := try(kind, what)
		var e syscall.Errno
		switch {
		case err == nil:
			said[a] = Done
		case errors.As(err, &e):
			said[a] = unix.ErrnoName(e)
		default:
			said[a] = err.Error()
		}
	}
	return said
}

func try(kind, what string) error {
	switch kind {
	case "read":
		_, err := os.ReadFile(what)
		return err
	case "list":
		entries, err := os.ReadDir(what)
		if err == nil && len(entries) < 2 { // the way to what is its own
			err = os.ErrNotExist
		}
		return err
	case "write":
		return write(what)
	case "remove":
		return os.Remove(what)
	case "run":
		p, err := os.StartProcess(what, []string{what, "--help"}, &os.ProcAttr{})
		if err == nil {
			_, _ = p.Wait()
		}
		return err
	case "abstract":
		return connect("unix", what)
	case "unix", "tcp", "udp":
		return connect(kind, what)
	case "kill", "look":
		pid, err := strconv.Atoi(what)
		if err != nil {
			return err
		}
		if kind == "kill" {
			return syscall.Kill(pid, 0)
		}
		_, err = os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		return err
	case "processes": // others than this one
		pids, err := filepath.Glob("/proc/[0-9]*")
		if err == nil && len(pids) < 2 {
			err = unix.ESRCH
		}
		return err
	case "unlock":
		return unlock()
	case "root":
		return becomeRoot()
	case "limit":
		pid, err := strconv.Atoi(what)
		if err != nil {
			return err
		}
		return unix.Prlimit(pid, unix.RLIMIT_CPU, &unix.Rlimit{Cur: 1 << 30, Max: 1 << 30}, nil)
	case "mode":
		return unix.Chmod(what, 0o777)
	case "modes":
		return each(func(fd int) error { return unix.Fchmod(fd, 0o600) })
	case "shut":
		return all(func(fd int) error {
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
				return os.ErrInvalid
			}
			return unix.Fchmod(fd, 0)
		})
	case "stay":
		return all(func(fd int) error {
			flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
			if err == nil {
				_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags&^unix.O_ASYNC)
			}
			return err
		})
	case "lease":
		return each(func(fd int) error {
			_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_WRLCK)
			return err
		})
	case "key":
		_, err := unix.KeyctlSearch(unix.KEY_SPEC_SESSION_KEYRING, "user", what, 0)
		return err
	case "ring":
		params := make([]byte, 120) // struct io_uring_params
		return call(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params[0])), 0)
	case "traceme":
		return call(unix.SYS_PTRACE, unix.PTRACE_TRACEME, 0, 0)
	case "memory":
		return readMemory()
	case "pidfd":
		fd, err := unix.PidfdOpen(os.Getpid(), 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		_, err = unix.PidfdGetfd(fd, 1, 0)
		return err
	case "x32":
		err := call(0x40000000|unix.SYS_GETPPID, 0, 0, 0)
		if errors.Is(err, unix.ENOSYS) { // no filter kept it from the kernel, which has none
			return nil
		}
		return err
	case "core":
		return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1, Max: 1})
	case "env":
		if os.Getenv(what) == "" {
			return os.ErrNotExist
		}
		return nil
	case "own":
		return own(what)
	case "vsock":
		fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
		if err == nil {
			_ = unix.Close(fd)
		}
		return err
	}
	return fmt.Errorf("unknown attempt %q", kind)
}

func write(name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString("x")
	return err
}

func connect(network, address string) error {
	c, err := net.Dial(network, address)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte("x"))
	return err
}

func call(number, a, b, c uintptr) error {
	if _, _, errno := unix.RawSyscall(number, a, b, c); errno != 0 {
		return errno
	}
	return nil
}

// readMemory reads this process's memory as it would another's.
func readMemory() error {
	from, to := []byte("x"), make([]byte, 1)
	local := []unix.Iovec{{Base: &to[0], Len: 1}}
	remote := []unix.RemoteIovec{{Base: uintptr(unsafe.Pointer(&from[0])), Len: 1}}
	_, err := unix.ProcessVMReadv(os.Getpid(), local, remote, 0)
	return err
}

// own looks for a file that is open and holds words, and writes behind them.
func own(words string) error {
	return each(func(fd int) error {
		b := make([]byte, len(words))
		if n, err := unix.Pread(fd, b, 0); err != nil || string(b[:n]) != words {
			return os.ErrNotExist
		}
		_, err := unix.Pwrite(fd, []byte("!"), int64(len(words)))
		return err
	})
}

// unlock lets go of all flocks that this process holds through descriptors it inherited.
func unlock() error { return all(func(fd int) error { return unix.Flock(fd, unix.LOCK_UN) }) }

// all does something to every open file, and succeeds if that does once.
func all(do func(fd int) error) error {
	done := false
	err := each(func(fd int) error {
		err := do(fd)
		done = done || err == nil
		return errors.Join(err, errNext)
	})
	if done {
		return nil
	}
	return err
}

var errNext = errors.New("and the others")

// each does something to every open file, and succeeds if that does once.
func each(do func(fd int) error) error {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	err = os.ErrNotExist
	for _, fd := range fds {
		n, e := strconv.Atoi(filepath.Base(fd.Name()))
		if e != nil || n < 3 {
			continue
		}
		if e := do(n); e == nil {
			return nil
		} else if !errors.Is(e, unix.EBADF) {
			err = e
		}
	}
	return err
}

var errNotRoot = errors.New("it is not root")

// becomeRoot starts programs that would be another user's, and asks the kernel.
func becomeRoot() error {
	for _, name := range []string{"su", "sudo", "mount", "newgrp"} {
		if out, err := exec.Command(name, "-c", "id -u").Output(); err == nil && strings.TrimSpace(string(out)) == "0" {
			return nil
		}
	}
	if err := syscall.Setuid(0); err != nil {
		return err
	}
	if err := syscall.Mount("none", "/", "", syscall.MS_REMOUNT, ""); err != nil {
		return errors.Join(errNotRoot, err)
	}
	return nil
}
