package keyring

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary be a child that inherits a ring: it says what it
// sees of a key, and waits for its end.
func TestMain(m *testing.M) {
	if s := os.Getenv("KEYRING_TEST_KEY"); s != "" {
		n, _ := strconv.Atoi(s)
		r, err := Inherited()
		if err == nil {
			var d Description
			var b []byte
			d, err = r.Describe(Serial(n))
			if err == nil {
				b, err = r.Read(Serial(n))
			}
			fmt.Printf("%s %s %s\n", d.Type, d.Text, b)
		}
		if err != nil {
			fmt.Println("error", err)
		}
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// exists asks the kernel, on a thread without the ring, whether a key is there:
// "denied" is a key that is.
func exists(s Serial) bool {
	_, err := unix.KeyctlString(unix.KEYCTL_DESCRIBE, int(s))
	return err == nil || errors.Is(err, unix.EACCES)
}

func waitGone(t *testing.T, s Serial) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); exists(s); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("key %d is still there", s)
		}
	}
}

// TestLife: a key is visible to a child that inherits its ring, to nobody else,
// and gone when the child is.
func TestLife(t *testing.T) {
	for _, how := range []string{"end", "kill"} {
		payload := []byte("secret " + how)
		var key Serial
		var child *exec.Cmd
		var in io.WriteCloser
		var line string
		err := Apart(func(r *Ring) (err error) {
			if key, err = r.Add(User, "vmlatch-test:"+how, payload, 0); err != nil {
				return err
			}
			child = exec.Command(os.Args[0])
			child.Env = append(os.Environ(), "KEYRING_TEST_KEY="+strconv.Itoa(int(key)))
			if in, err = child.StdinPipe(); err != nil {
				return err
			}
			out, err := child.StdoutPipe()
			if err != nil {
				return err
			}
			if err := child.Start(); err != nil {
				return err
			}
			line, err = bufio.NewReader(out).ReadString('\n')
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if want := "user vmlatch-test:" + how + " secret " + how + "\n"; line != want {
			t.Errorf("the child sees %q, want %q", line, want)
		}
		if !bytes.Equal(payload, make([]byte, len(payload))) {
			t.Errorf("the payload was not wiped: %q", payload)
		}
		other := &Ring{}
		if _, err := other.Describe(key); !errors.Is(err, ErrDenied) {
			t.Errorf("another thread may look at the key: %v", err)
		}
		if _, err := other.Read(key); err == nil {
			t.Error("another thread reads the key")
		}
		if b, _ := os.ReadFile("/proc/keys"); bytes.Contains(b, []byte("vmlatch-test:"+how)) {
			t.Errorf("another thread sees the key:\n%s", b)
		}
		if how == "kill" {
			_ = child.Process.Kill()
		} else {
			_ = in.Close()
		}
		_ = child.Wait()
		waitGone(t, key)
	}
}

// TestNobodyLeft: a ring that no child inherits goes with its thread.
func TestNobodyLeft(t *testing.T) {
	var key Serial
	boom := errors.New("the start fails")
	err := Apart(func(r *Ring) (err error) {
		key, err = r.Add(User, "vmlatch-test:alone", []byte("x"), 0)
		if err != nil {
			return err
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Fatal(err)
	}
	waitGone(t, key)
}

func TestOperations(t *testing.T) {
	err := Apart(func(r *Ring) error {
		key, err := r.Add(User, "vmlatch-test:ops", []byte("content"), 0)
		if err != nil {
			return err
		}
		if found, err := r.Search(User, "vmlatch-test:ops"); err != nil || found != key {
			t.Errorf("found %d, %v", found, err)
		}
		d, err := r.Describe(key)
		if err != nil || d.Type != User || d.UID != os.Geteuid() || d.Permissions != PosView|PosSearch|PosRead|PosWrite {
			t.Errorf("%+v, %v", d, err)
		}
		if b, err := r.Read(key); err != nil || string(b) != "content" {
			t.Errorf("%q, %v", b, err)
		}
		logon, err := r.Add(Logon, "vmlatch-test:logon", []byte("unseen"), 0)
		if err != nil {
			t.Error(err)
		} else if _, err := r.Read(logon); err == nil {
			t.Error("a logon key was read")
		}
		if _, err := r.Search(User, "vmlatch-test:none"); !errors.Is(err, ErrGone) {
			t.Errorf("a key that is not there: %v", err)
		}
		if _, err := r.Add(TypeMKTME, "vmlatch-test:mktme", []byte("type=cpu algorithm=aes-xts-128"), 0); !errors.Is(err, ErrNoType) && err != nil {
			t.Errorf("mktme: %v", err)
		} else if err == nil {
			t.Log("this kernel has mktme keys")
		} else if !strings.Contains(err.Error(), "no such type") {
			t.Errorf("in words: %v", err)
		}
		if _, err := r.Add(User, strings.Repeat("x", 5000), []byte("y"), 0); err == nil {
			t.Error("a description of 5000 characters")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestQuota: the numbers are told when a user has too many keys.
func TestQuota(t *testing.T) {
	if os.Geteuid() == 0 {
		e := explain("add", User, unix.EDQUOT)
		if !errors.Is(e, ErrQuota) || !strings.Contains(e.Error(), "keys ") || !strings.Contains(e.Error(), "/") {
			t.Errorf("%v", e)
		}
		return
	}
	err := Apart(func(r *Ring) error {
		for i := range 100_000 {
			if _, err := r.Add(User, fmt.Sprintf("vmlatch-test:quota%d", i), []byte("x"), 0); err != nil {
				return err
			}
		}
		return nil
	})
	if !errors.Is(err, ErrQuota) || !strings.Contains(err.Error(), "keys ") {
		t.Errorf("%v", err)
	}
}

func TestExpire(t *testing.T) {
	err := Apart(func(r *Ring) error {
		key, err := r.Add(User, "vmlatch-test:expire", []byte("x"), time.Second)
		if err != nil {
			return err
		}
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			if _, err := r.Read(key); errors.Is(err, ErrGone) {
				return nil
			}
		}
		return errors.New("it does not expire")
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestRevoke(t *testing.T) {
	err := Apart(func(r *Ring) error {
		key, err := r.Add(User, "vmlatch-test:revoke", []byte("x"), 0)
		if err != nil {
			return err
		}
		if err := r.Revoke(key); err != nil {
			return err
		}
		if _, err := r.Read(key); !errors.Is(err, ErrGone) {
			return fmt.Errorf("read after revoke: %w", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestKnown(t *testing.T) {
	for kind, want := range map[Type]bool{User: true, Logon: true, "no-such-type": false} {
		if got, err := Known(kind); got != want || err != nil {
			t.Errorf("%s: %t, %v", kind, got, err)
		}
	}
}

// TestNoLink: who has the ring can neither put it, nor its key, where it would
// outlive its processes, nor give rights away.
func TestNoLink(t *testing.T) {
	err := Apart(func(r *Ring) error {
		key, err := r.Add(User, "vmlatch-test:link", []byte("x"), 0)
		if err != nil {
			return err
		}
		for what, n := range map[string]Serial{"the ring": r.serial, "the key": key} {
			if _, err := unix.KeyctlInt(unix.KEYCTL_LINK, int(n), unix.KEY_SPEC_USER_KEYRING, 0, 0); !errors.Is(err, unix.EACCES) {
				t.Errorf("%s can be linked elsewhere: %v", what, err)
				_, _ = unix.KeyctlInt(unix.KEYCTL_UNLINK, int(n), unix.KEY_SPEC_USER_KEYRING, 0, 0)
			}
			if err := unix.KeyctlSetperm(int(n), 0x3f3f3f3f); !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) && os.Geteuid() != 0 {
				t.Errorf("%s can be given rights: %v", what, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
