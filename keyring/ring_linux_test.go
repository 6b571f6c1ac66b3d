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
				b, err = readKey(Serial(n))
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

// readKey returns a key's payload.
func readKey(s Serial) ([]byte, error) {
	b := make([]byte, 1024)
	n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, int(s), b, len(b))
	if err != nil {
		return nil, explain("read", "", err)
	}
	return b[:n], nil
}

// needKeyrings skips where keyrings are forbidden, as in many containers.
func needKeyrings(t *testing.T) {
	t.Helper()
	err := Apart(func(*Ring) error { return nil })
	if errors.Is(err, ErrNotSupported) || errors.Is(err, ErrDenied) {
		t.Skip("keyrings are forbidden here: ", err)
	}
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

// TestLife: a key is visible to a child that inherits its ring, to no other process,
// and gone when the child is.
func TestLife(t *testing.T) {
	needKeyrings(t)
	for _, how := range []string{"end", "kill"} {
		payload := []byte("secret " + how)
		var key Serial
		var child *exec.Cmd
		var in io.WriteCloser
		var line string
		err := Apart(func(r *Ring) (err error) {
			if key, err = r.Add(Key{Type: User, Description: "vmlatch-test:" + how, Payload: payload}); err != nil {
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
		if _, err := (&Ring{}).Describe(key); !errors.Is(err, ErrDenied) {
			t.Errorf("another thread may look at the key: %v, want ErrDenied", err)
		}
		if _, err := readKey(key); err == nil {
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

// TestNoHeir: a ring that no child inherits goes with its thread.
func TestNoHeir(t *testing.T) {
	needKeyrings(t)
	var key Serial
	boom := errors.New("the start fails")
	err := Apart(func(r *Ring) (err error) {
		key, err = r.Add(Key{Type: User, Description: "vmlatch-test:alone", Payload: []byte("x")})
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
	needKeyrings(t)
	err := Apart(func(r *Ring) error {
		key, err := r.Add(Key{Type: User, Description: "vmlatch-test:ops", Payload: []byte("content")})
		if err != nil {
			return err
		}
		if found, err := r.Search(User, "vmlatch-test:ops"); err != nil || found != key {
			t.Errorf("found %d, %v", found, err)
		}
		d, err := r.Describe(key)
		if err != nil || d.Type != User || d.UID != os.Geteuid() || d.Permissions != Possessed {
			t.Errorf("%+v, %v", d, err)
		}
		if b, err := readKey(key); err != nil || string(b) != "content" {
			t.Errorf("%q, %v", b, err)
		}
		logon, err := r.Add(Key{Type: Logon, Description: "vmlatch-test:logon", Payload: []byte("unseen")})
		if err != nil {
			t.Error(err)
		} else if _, err := readKey(logon); err == nil {
			t.Error("a logon key was read")
		}
		if _, err := r.Search(User, "vmlatch-test:none"); !errors.Is(err, ErrGone) {
			t.Errorf("a key that is not there: %v", err)
		}
		if _, err := r.Add(Key{
			Type: TypeMKTME, Description: "vmlatch-test:mktme",
			Payload: []byte("type=cpu algorithm=aes-xts-128"),
		}); !errors.Is(err, ErrNoType) && err != nil {
			t.Errorf("mktme: %v", err)
		} else if err == nil {
			t.Log("this kernel has mktme keys")
		} else if !strings.Contains(err.Error(), "no such type") {
			t.Errorf("in words: %v", err)
		}
		if _, err := r.Add(Key{Type: User, Description: strings.Repeat("x", 5000), Payload: []byte("y")}); err == nil {
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
	needKeyrings(t)
	if os.Geteuid() == 0 { // whose quota is not used up soon
		e := explain("add", User, unix.EDQUOT)
		if !errors.Is(e, ErrQuota) || !strings.Contains(e.Error(), "keys ") || !strings.Contains(e.Error(), "/") {
			t.Errorf("%v", e)
		}
		return
	}
	err := Apart(func(r *Ring) error {
		for i := range 100_000 {
			if _, err := r.Add(Key{
				Type: User, Description: fmt.Sprintf("vmlatch-test:quota%d", i),
				Payload: []byte("x"),
			}); err != nil {
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
	needKeyrings(t)
	err := Apart(func(r *Ring) error {
		key, err := r.Add(Key{
			Type: User, Description: "vmlatch-test:expire", Payload: []byte("x"),
			Expires: time.Second,
		})
		if err != nil {
			return err
		}
		for range 100 {
			time.Sleep(50 * time.Millisecond)
			if _, err := readKey(key); errors.Is(err, ErrGone) {
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
	needKeyrings(t)
	err := Apart(func(r *Ring) error {
		key, err := r.Add(Key{Type: User, Description: "vmlatch-test:revoke", Payload: []byte("x")})
		if err != nil {
			return err
		}
		if err := r.Revoke(key); err != nil {
			return err
		}
		if _, err := readKey(key); !errors.Is(err, ErrGone) {
			return fmt.Errorf("read after revoke: %w", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestKnown(t *testing.T) {
	needKeyrings(t)
	for kind, want := range map[Type]bool{User: true, Logon: true, "no-such-type": false} {
		if got, err := Known(kind); got != want || err != nil {
			t.Errorf("%s: %t, %v", kind, got, err)
		}
	}
}

// TestThread: a ring that is used where it is not is an error, not another key.
func TestThread(t *testing.T) {
	needKeyrings(t)
	err := Apart(func(r *Ring) error {
		key, err := r.Add(Key{Type: User, Description: "vmlatch-test:thread", Payload: []byte("x")})
		if err != nil {
			return err
		}
		return Apart(func(*Ring) error {
			payload := []byte("y")
			for what, err := range map[string]error{
				"add":      second(r.Add(Key{Type: User, Description: "vmlatch-test:other", Payload: payload})),
				"describe": second(r.Describe(key)),
				"search":   second(r.Search(User, "vmlatch-test:thread")),
				"expire":   r.SetTimeout(key, time.Hour),
				"permit":   r.SetPermissions(key, View),
				"revoke":   r.Revoke(key),
			} {
				if !errors.Is(err, ErrThread) {
					t.Errorf("%s: %v", what, err)
				}
			}
			if payload[0] != 0 {
				t.Error("the payload was not wiped")
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
}

func second[T any](_ T, err error) error { return err }

// TestWords: each errno has its own.
func TestWords(t *testing.T) {
	for _, c := range []struct {
		op   string
		kind Type
		err  error
		why  error
		text string
	}{
		{"add", TypeMKTME, unix.ENODEV, ErrNoType, "add key of type mktme: this kernel has no such type of key"},
		{"add", TypeMKTME, unix.ENOKEY, ErrNoneFree, "add key of type mktme: no key ID is free"},
		{"add", TypeMKTME, unix.EACCES, ErrDenied, "CAP_SYS_ADMIN"},
		{"add", Encrypted, unix.ENOKEY, ErrNoMaster, "master key is not there"},
		{"read", "", unix.ENOKEY, ErrGone, "read key: the key is gone"},
		{"read", "", unix.EKEYREVOKED, ErrGone, "read key: the key is gone"},
		{"read", "", unix.EKEYEXPIRED, ErrGone, "read key: the key is gone"},
		{"read", Logon, unix.EOPNOTSUPP, ErrCannot, "cannot do that"},
		{"add", User, unix.EDQUOT, ErrQuota, "quota of keys is used up (keys "},
		{"add", User, unix.EINVAL, ErrInvalid, "no key can be like this"},
		{"join", "", unix.ENOSYS, ErrNotSupported, "not supported on this system"},
		{"add", User, unix.ENOMEM, nil, "add key of type user: cannot allocate memory"},
	} {
		err := explain(c.op, c.kind, c.err)
		if !errors.Is(err, c.err) || c.why != nil && !errors.Is(err, c.why) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s %s %v: %v, want %q", c.op, c.kind, c.err, err, c.text)
		}
	}
}

// TestCapabilityIsNamed only where it would help.
func TestCapabilityIsNamed(t *testing.T) {
	for _, c := range []struct {
		op   string
		kind Type
		want bool
	}{{"add", TypeMKTME, true}, {"add", User, false}, {"revoke", TypeMKTME, false}} {
		err := explain(c.op, c.kind, unix.EACCES)
		if got := strings.Contains(err.Error(), "CAP_"); got != c.want {
			t.Errorf("%s %s: %v, want a capability: %t", c.op, c.kind, err, c.want)
		}
	}
}
