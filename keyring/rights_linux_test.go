package keyring

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestRights: rights can be changed by a thread that has the right to, and once that is
// given up, by none.
func TestRights(t *testing.T) {
	needKeyrings(t)
	err := Apart(func(r *Ring) error {
		key, err := r.Add(Key{
			Type: User, Description: "vmlatch-test:rights", Payload: []byte("x"),
			Permissions: Possessed | SetAttr,
		})
		if err != nil {
			return err
		}
		if err := r.SetTimeout(key, 90*time.Minute); err != nil {
			t.Error(err)
		}
		if err := r.SetTimeout(key, -time.Second); !errors.Is(err, ErrInvalid) {
			t.Errorf("a negative timeout: %v", err)
		}
		if err := r.SetTimeout(key, 0); err != nil {
			t.Error(err)
		}
		if err := r.SetPermissions(key, View|Search); err != nil {
			t.Error(err)
		}
		for what, err := range map[string]error{
			"revoke": r.Revoke(key), "expire": r.SetTimeout(key, time.Hour),
			"permit": r.SetPermissions(key, Possessed),
		} {
			if os.Geteuid() == 0 && what != "revoke" {
				continue // CAP_SYS_ADMIN may
			}
			if !errors.Is(err, ErrDenied) {
				t.Errorf("%s without the right: %v", what, err)
			}
		}
		if d, err := r.Describe(key); err != nil || d.Permissions != View|Search {
			t.Errorf("%+v, %v", d, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestNoLink: a process that has the ring can neither put it, nor its key, where it would
// outlive its processes, nor give rights away.
func TestNoLink(t *testing.T) {
	needKeyrings(t)
	err := Apart(func(r *Ring) error {
		key, err := r.Add(Key{Type: User, Description: "vmlatch-test:link", Payload: []byte("x")})
		if err != nil {
			return err
		}
		for what, n := range map[string]Serial{"the ring": r.serial, "the key": key} {
			_, err := unix.KeyctlInt(unix.KEYCTL_LINK, int(n), unix.KEY_SPEC_USER_KEYRING, 0, 0)
			if !errors.Is(err, unix.EACCES) {
				t.Errorf("%s can be linked elsewhere: %v", what, err)
				_, _ = unix.KeyctlInt(unix.KEYCTL_UNLINK, int(n), unix.KEY_SPEC_USER_KEYRING, 0, 0)
			}
			if err := unix.KeyctlSetperm(int(n), 0x3f3f3f3f); !errors.Is(err, unix.EACCES) &&
				!errors.Is(err, unix.EPERM) && os.Geteuid() != 0 {
				t.Errorf("%s can be given rights: %v", what, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestInvalid: what cannot be a key does not reach the kernel, and no payload is
// shown or kept.
func TestInvalid(t *testing.T) {
	needKeyrings(t)
	err := Apart(func(r *Ring) error {
		payload := []byte("type=user algorithm=aes-xts-128 key=5ec2e7")
		_, err := r.Add(Key{Type: TypeMKTME, Description: "vmlatch-test:invalid", Payload: payload})
		if !errors.Is(err, ErrInvalid) || strings.Contains(err.Error(), "5ec2e7") ||
			!bytes.Equal(payload, make([]byte, len(payload))) {
			t.Errorf("%v, payload %q", err, payload)
		}
		// The kernel makes keys of these two types itself, if it has their parts.
		master := []byte(strings.Repeat("m", 32))
		if _, err := r.Add(Key{Type: User, Description: "vmlatch-test-master", Payload: master}); err != nil {
			return err
		}
		for kind, payload := range map[Type]string{Encrypted: "new user:vmlatch-test-master 32", Trusted: "new 32"} {
			key, err := r.Add(Key{Type: kind, Description: "vmlatch-test:" + string(kind), Payload: []byte(payload)})
			if errors.Is(err, ErrNoType) {
				t.Logf("%s: %v", kind, err)
				continue
			}
			if err != nil {
				return err
			}
			if d, err := r.Describe(key); err != nil || d.Type != kind {
				t.Errorf("%+v, %v", d, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
