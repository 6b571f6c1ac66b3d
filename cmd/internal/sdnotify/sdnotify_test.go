package sdnotify

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// manager listens as a service manager does.
func manager(t *testing.T, addr string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: addr, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	t.Setenv("NOTIFY_SOCKET", addr)
	return c
}

// next reads one message, and closes the descriptors that came with it.
func next(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	b, oob := make([]byte, 4096), make([]byte, 256)
	n, oobn, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		t.Error(err)
		return ""
	}
	if messages, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil {
		for _, m := range messages {
			fds, _ := unix.ParseUnixRights(&m)
			for _, fd := range fds {
				_ = unix.Close(fd)
			}
		}
	}
	return string(b[:n])
}

func TestReadyWaitsForTheManager(t *testing.T) {
	for _, addr := range []string{filepath.Join(t.TempDir(), "notify"), "@vmlatch-test-notify"} {
		c := manager(t, addr)
		m, err := FromEnv()
		if err != nil || m == nil {
			t.Fatalf("%v, %v", m, err)
		}
		if _, ok := os.LookupEnv("NOTIFY_SOCKET"); ok {
			t.Error("a child would get the socket")
		}
		if err := m.Status("a\nMAINPID=1"); err != nil {
			t.Fatal(err)
		}
		if err := m.Extend(90 * time.Second); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- m.Ready(context.Background(), 42, "guest: running") }()
		for i, want := range []string{
			"STATUS=a MAINPID=1",
			"EXTEND_TIMEOUT_USEC=90000000",
			"MAINPID=42\nREADY=1\nSTATUS=guest: running",
			"BARRIER=1",
		} {
			select {
			case err := <-done:
				t.Fatalf("done before the manager has read message %d: %v", i, err)
			case <-time.After(20 * time.Millisecond):
			}
			if got := next(t, c); got != want {
				t.Errorf("message %d is %q, want %q", i, got, want)
			}
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestSlowManager: a manager that does not read yet gets the message all the same.
func TestSlowManager(t *testing.T) {
	c := manager(t, "@vmlatch-test-slow")
	m, err := FromEnv()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := m.Ready(ctx, 42, "x"); !errors.Is(err, ErrSlow) {
		t.Errorf("%v, want %v", err, ErrSlow)
	}
	if got := next(t, c); !strings.HasPrefix(got, "MAINPID=42\nREADY=1\n") {
		t.Errorf("it reads %q, want that PID 42 is ready", got)
	}
}

func TestNoManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	m, err := FromEnv()
	if m != nil || err != nil {
		t.Fatalf("%v, %v", m, err)
	}
	if err := m.Ready(context.Background(), 1, "x"); err != nil {
		t.Error(err)
	}
	if err := m.Status("x"); err != nil {
		t.Error(err)
	}
	t.Setenv("NOTIFY_SOCKET", "relative")
	if _, err := FromEnv(); err == nil {
		t.Error("a relative path is accepted")
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "gone"))
	m, err = FromEnv()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Ready(context.Background(), 0, "x"); err == nil || !strings.Contains(err.Error(), "service manager") {
		t.Errorf("a socket that is gone: %v, want an error that names the service manager", err)
	}
}

func TestUnitOf(t *testing.T) {
	for groups, want := range map[string]string{
		"0::/system.slice/vmlatch@web.service\n":              "vmlatch@web.service",
		"1:name=systemd:/system.slice/a.service\n0::/other\n": "a.service",
		"0::/user.slice/user-0.slice/session-1.scope\n":       "",
		"4:memory:/system.slice/a.service\n":                  "",
		"":                                                    "",
		"nonsense\n":                                          "",
		"0::/user.slice/user@0.service/app.slice/b.service\n": "b.service",
	} {
		if got := unitOf(groups); got != want {
			t.Errorf("%q: unit %q, want %q", groups, got, want)
		}
	}
	if got := Unit(); got != "" && !strings.HasSuffix(got, ".service") {
		t.Errorf("this process runs in the unit %q, want a service or none", got)
	}
}
