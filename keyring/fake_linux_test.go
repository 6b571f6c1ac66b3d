package keyring

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fake is a kernel that has one ring, remembers what it was asked, and fails where it
// is told to.
type fake struct {
	fail  map[string]error // by call: join, add, search, describe, permit, expire, revoke
	text  string           // the answer to describe
	found Serial           // the answer to search; 0: no such key
	asked []string
}

const (
	fakeRing Serial = 100
	fakeKey  Serial = 101
)

func (f *fake) note(call, format string, args ...any) error {
	f.asked = append(f.asked, call+" "+fmt.Sprintf(format, args...))
	return f.fail[call]
}

func (f *fake) join() (Serial, error) { return fakeRing, f.note("join", "") }

func (f *fake) add(t Type, description string, payload []byte, ring Serial) (Serial, error) {
	return fakeKey, f.note("add", "%s %s %s %d", t, description, payload, ring)
}

func (f *fake) search(ring Serial, t Type, description string) (Serial, error) {
	if err := f.note("search", "%d %s %s", ring, t, description); err != nil {
		return 0, err
	}
	if f.found == 0 {
		return 0, unix.ENOKEY
	}
	return f.found, nil
}

func (f *fake) describe(s Serial) (string, error) { return f.text, f.note("describe", "%d", s) }

func (f *fake) control(command int, s Serial, arg int) error {
	call := map[int]string{
		unix.KEYCTL_SETPERM: "permit", unix.KEYCTL_SET_TIMEOUT: "expire", unix.KEYCTL_REVOKE: "revoke",
	}[command]
	if s == fakeRing {
		call = "ring-" + call
	}
	return f.note(call, "%d %#x", s, arg)
}

// TestAdd: a key is in the ring with its rights and its timeout, or nowhere.
func TestAdd(t *testing.T) {
	key := func() Key {
		return Key{Type: User, Description: "a", Payload: []byte("secret"), Expires: 1500 * time.Millisecond}
	}
	added := []string{"search 100 user a", "add user a secret 100"}
	for what, c := range map[string]struct {
		fake fake
		key  Key
		want []string // after join and the ring's own rights
		err  error
	}{
		"whole": {key: key(), want: append(slices.Clone(added), "expire 101 0x2", "permit 101 0xf000000")},
		"no expiry": {
			key:  Key{Type: User, Description: "a", Payload: []byte("secret")},
			want: append(slices.Clone(added), "permit 101 0xf000000"),
		},
		"its own rights": {
			key:  Key{Type: User, Description: "a", Payload: []byte("secret"), Permissions: View},
			want: append(slices.Clone(added), "permit 101 0x1000000"),
		},
		"rights fail": {
			fake: fake{fail: map[string]error{"permit": unix.EACCES}}, key: key(), err: ErrDenied,
			want: append(slices.Clone(added), "expire 101 0x2", "permit 101 0xf000000", "revoke 101 0x0"),
		},
		"the timeout fails": {
			fake: fake{fail: map[string]error{"expire": unix.EACCES}}, key: key(), err: ErrDenied,
			want: append(slices.Clone(added), "expire 101 0x2", "revoke 101 0x0"),
		},
		"the kernel refuses": {
			fake: fake{fail: map[string]error{"add": unix.EDQUOT}}, key: key(), want: added,
			err: ErrQuota,
		},
		"it is there":  {fake: fake{found: 7}, key: key(), want: added[:1], err: ErrExists},
		"it cannot be": {key: Key{Type: User, Payload: []byte("secret")}, err: ErrInvalid},
	} {
		f := c.fake
		var serial Serial
		err := apart(&f, func(r *Ring) (err error) {
			serial, err = r.Add(c.key)
			return err
		})
		if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
			t.Errorf("%s: %v, want %v", what, err, c.err)
		}
		if want := map[bool]Serial{true: fakeKey}[c.err == nil]; serial != want {
			t.Errorf("%s: key %d, want %d", what, serial, want)
		}
		if want := append([]string{"join ", "ring-permit 100 0xf000000"}, c.want...); !slices.Equal(f.asked, want) {
			t.Errorf("%s: the kernel was asked %q, want %q", what, f.asked, want)
		}
		if !slices.Equal(c.key.Payload, make([]byte, len("secret"))) {
			t.Errorf("%s: the payload was not wiped: %q", what, c.key.Payload)
		}
	}
}

// TestApartFails: without a ring of its own, or one that others could link, nothing
// is done.
func TestApartFails(t *testing.T) {
	for call, want := range map[string]error{"join": ErrNotSupported, "ring-permit": ErrDenied} {
		f := fake{fail: map[string]error{"join": unix.ENOSYS, "ring-permit": unix.EACCES}}
		for other := range f.fail {
			if other != call {
				delete(f.fail, other)
			}
		}
		err := apart(&f, func(*Ring) error { t.Errorf("%s: called", call); return nil })
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", call, err, want)
		}
	}
	boom := errors.New("boom")
	if err := apart(&fake{}, func(*Ring) error { return boom }); err != boom {
		t.Errorf("%v, want the function's own error", err)
	}
}

// TestOperationsFail: an error of the kernel's is told in words.
func TestOperationsFail(t *testing.T) {
	f := &fake{fail: map[string]error{
		"search":   unix.EKEYREVOKED,
		"describe": unix.EACCES,
		"permit":   unix.EACCES,
		"expire":   unix.EKEYEXPIRED,
		"revoke":   unix.EINVAL,
	}}
	err := apart(f, func(r *Ring) error {
		for what, c := range map[string]struct{ err, want error }{
			"search":   {second(r.Search(User, "a")), ErrGone},
			"describe": {second(r.Describe(fakeKey)), ErrDenied},
			"permit":   {r.SetPermissions(fakeKey, View), ErrDenied},
			"expire":   {r.SetTimeout(fakeKey, time.Hour), ErrGone},
			"negative": {r.SetTimeout(fakeKey, -1), ErrInvalid},
			"revoke":   {r.Revoke(fakeKey), ErrInvalid},
		} {
			var e *Error
			if !errors.Is(c.err, c.want) || !errors.As(c.err, &e) {
				t.Errorf("%s: %v, want %v", what, c.err, c.want)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestSearchAndDescribe(t *testing.T) {
	f := &fake{found: 7, text: "user;1000;1001;3f010000;a;b c"}
	err := apart(f, func(r *Ring) error {
		if s, err := r.Search(User, "a"); s != 7 || err != nil {
			t.Errorf("search: key %d, %v, want 7", s, err)
		}
		want := Description{User, 1000, 1001, 0x3f010000, "a;b c"}
		if d, err := r.Describe(fakeKey); d != want || err != nil {
			t.Errorf("describe: %+v, %v, want %+v", d, err, want)
		}
		for _, bad := range []string{
			"", "user;1;2;3", "user;x;1;0;a", "user;1;x;0;a", "user;1;1;g;a",
			"user;1;1;fffffffff;a",
		} {
			f.text = bad
			if d, err := r.Describe(fakeKey); err == nil {
				t.Errorf("%q: %+v, want an error", bad, d)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestKnownTypes(t *testing.T) {
	for what, c := range map[string]struct {
		offered map[string]error // by type
		want    bool
		err     error
	}{
		"known":     {map[string]error{"vmlatch-no-type": unix.ENODEV, "user": unix.EINVAL}, true, nil},
		"unknown":   {map[string]error{"vmlatch-no-type": unix.ENODEV, "user": unix.ENODEV}, false, nil},
		"forbidden": {map[string]error{"vmlatch-no-type": unix.EPERM, "user": unix.EPERM}, false, ErrDenied},
	} {
		got, err := isKnown(&offers{types: c.offered}, User)
		if got != c.want || !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
			t.Errorf("%s: %t, %v, want %t, %v", what, got, err, c.want, c.err)
		}
	}
}

// offers answers an add by its type.
type offers struct {
	fake
	types map[string]error
}

func (o *offers) add(t Type, _ string, _ []byte, _ Serial) (Serial, error) {
	return 0, o.types[string(t)]
}
