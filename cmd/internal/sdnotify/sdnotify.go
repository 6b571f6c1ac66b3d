// Package sdnotify tells a service manager how a start is going, by the protocol
// of sd_notify(3). Libraries for it lack the barrier. Without it, the last message of a
// program that ends immediately is lost: the manager identifies the unit by the sender's
// process.
package sdnotify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// variables that a service manager sets for the program that it starts. The program's own
// children must not get them.
var variables = []string{"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}

// Manager is the service manager that waits for this program. It is nil if there is none,
// and then every method does nothing.
type Manager struct{ addr string }

// FromEnv finds the manager and removes its variables from the environment, so that no
// child sends messages in this program's name.
func FromEnv() (*Manager, error) {
	addr := os.Getenv("NOTIFY_SOCKET")
	for _, name := range variables {
		if err := os.Unsetenv(name); err != nil {
			return nil, err
		}
	}
	switch {
	case addr == "":
		return nil, nil
	case addr[0] != '/' && addr[0] != '@':
		return nil, fmt.Errorf("NOTIFY_SOCKET=%s: must be a path or an abstract socket", addr)
	}
	return &Manager{addr}, nil
}

// Unit is the unit that this process runs in, by its control group; "" if it is not in a
// service's group.
func Unit() string {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	return unitOf(string(b))
}

// unitOf reads a process's control groups (cgroups(7), /proc/PID/cgroup).
func unitOf(groups string) string {
	for line := range strings.Lines(groups) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && (f[1] == "" || f[1] == "name=systemd") {
			if i := strings.LastIndexByte(f[2], '/'); strings.HasSuffix(f[2], ".service") {
				return f[2][i+1:]
			}
		}
	}
	return ""
}

// Status shows a line of text in the unit's state.
func (m *Manager) Status(format string, args ...any) error {
	return m.send("STATUS="+oneLine(fmt.Sprintf(format, args...)), nil)
}

// Extend asks for more time than the unit gives a start.
func (m *Manager) Extend(d time.Duration) error {
	return m.send(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", d.Microseconds()), nil)
}

// Ready reports that the start is done and, unless pid is 0, that another process is the
// main one from now on. It returns once the manager has processed that: this process may
// then end. [ErrSlow] means that the message was sent but not acknowledged.
func (m *Manager) Ready(ctx context.Context, pid int, status string) error {
	if m == nil {
		return nil
	}
	text := "READY=1\nSTATUS=" + oneLine(status)
	if pid > 0 {
		text = fmt.Sprintf("MAINPID=%d\n%s", pid, text)
	}
	if err := m.send(text, nil); err != nil {
		return err
	}
	return m.barrier(ctx)
}

// ErrSlow means that the manager did not read its socket in time.
var ErrSlow = errors.New("the service manager does not answer")

// While a manager reloads its units it does not read its socket.
const (
	sendTimeout    = 5 * time.Second
	barrierTimeout = 30 * time.Second
)

// barrier sends one end of a pipe and waits until the manager closes it.
func (m *Manager) barrier(ctx context.Context) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	err = m.send("BARRIER=1", w)
	_ = w.Close()
	if err != nil {
		return err
	}
	if err := r.SetReadDeadline(time.Now().Add(barrierTimeout)); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })()
	if _, err := r.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		return ErrSlow
	}
	return nil
}

func (m *Manager) send(text string, f *os.File) error {
	if m == nil {
		return nil
	}
	// Package net cannot send descriptors over a connected socket.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	limit := unix.NsecToTimeval(sendTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	var oob []byte
	if f != nil {
		oob = unix.UnixRights(int(f.Fd()))
	}
	if err := unix.Sendmsg(fd, []byte(text), oob, &unix.SockaddrUnix{Name: m.addr}, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("service manager at %s: %w", m.addr, err)
	}
	return nil
}

// oneLine keeps text from becoming further assignments.
func oneLine(s string) string { return strings.ReplaceAll(s, "\n", " ") }
