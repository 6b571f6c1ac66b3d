package swtpm

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// TestMain plays the launcher's program where a test starts this one as such.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "main" {
		os.Exit(Main(os.Args[2:]))
	}
	os.Exit(m.Run())
}

// state is a file as swtpm writes it.
func state(flags uint16, size int) []byte {
	b := make([]byte, size)
	b[0], b[1], b[3] = 2, 1, 10
	binary.BigEndian.PutUint16(b[4:], flags)
	binary.BigEndian.PutUint32(b[6:], uint32(size))
	return b
}

func TestEncrypted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state")
	if _, err := Encrypted(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a file: %v, want fs.ErrNotExist", err)
	}
	for what, x := range map[string]struct {
		b    []byte
		want bool
		err  error
	}{
		"plain":         {state(0, 1315), false, nil},
		"encrypted":     {state(9, 1315), true, nil},
		"cut off":       {state(9, 1315)[:1000], false, ErrState},
		"empty":         {nil, false, ErrState},
		"another file":  {[]byte("these are other words"), false, ErrState},
		"only a header": {state(0, 10), false, nil},
	} {
		if err := os.WriteFile(file, x.b, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := Encrypted(file); got != x.want || !errors.Is(err, x.err) {
			t.Errorf("%s: %t, %v, want %t, %v", what, got, err, x.want, x.err)
		}
	}
}

// started runs Main for a program, with the reading end of a pipe as descriptor 3.
func started(t *testing.T, life *os.File, command ...string) (*exec.Cmd, chan error) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", append([]string{"main", "3"}, command...)...)
	cmd.ExtraFiles = []*os.File{life}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return cmd, ended
}

// TestEndsWithThePipe: the program runs while the pipe has a writer, and is killed then; and one
// that starts later is not started at all.
func TestEndsWithThePipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd, ended := started(t, r, "/bin/sleep", "60")
	select {
	case err := <-ended:
		t.Fatalf("it ended before the pipe did: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	_ = w.Close()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		_ = cmd.Process.Kill()
		t.Fatal("it did not end with the pipe")
	}
	if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != syscall.SIGKILL {
		t.Errorf("it ended with %v, want SIGKILL", cmd.ProcessState)
	}
	_, ended = started(t, r, "/bin/sleep", "60")
	select {
	case err := <-ended:
		if err == nil {
			t.Error("it succeeds without a QEMU")
		}
	case <-time.After(5 * time.Second):
		t.Error("it runs without a QEMU")
	}
}

func TestMainRefuses(t *testing.T) {
	for _, args := range [][]string{{}, {"3"}, {"x", "/bin/true"}, {strconv.Itoa(1 << 20), "/bin/true"}} {
		if code := Main(args); code == 0 {
			t.Errorf("%v: code 0", args)
		}
	}
}
