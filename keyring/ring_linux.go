package keyring

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Serial is the kernel's number of a key: its handle.
type Serial int32

// Permissions of a key (keyctl_setperm(3)); those of its possessor, and of its
// user's other processes.
type Permissions uint32

// Rights, for possessors.
const (
	PosView    Permissions = 0x01000000
	PosRead    Permissions = 0x02000000
	PosWrite   Permissions = 0x04000000
	PosSearch  Permissions = 0x08000000
	PosLink    Permissions = 0x10000000
	PosSetAttr Permissions = 0x20000000
	UsrView    Permissions = 0x00010000
)

// Ring is an anonymous session keyring, joined by the current thread.
type Ring struct{ serial Serial }

// Apart runs fn on a thread of its own that has joined a new ring. The thread ends
// with fn: from then on only processes that fn started have the ring.
func Apart(fn func(*Ring) error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked, so the thread ends here
		if unix.Gettid() == unix.Getpid() {
			// But not this one, for Go keeps the process's first thread.
			err := Apart(fn)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- join(fn)
	}()
	return <-done
}

// Here runs fn on the current thread, which the caller has locked to its
// goroutine, and which keeps the ring as long as it lives.
func Here(fn func(*Ring) error) error { return join(fn) }

func join(fn func(*Ring) error) error {
	n, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0) // 0: without a name
	if err != nil {
		return explain("join", "", err)
	}
	r := &Ring{Serial(n)}
	// Nobody may link the ring to where it would outlive its processes, nor give
	// rights on it away.
	if err := r.permit(r.serial, PosView|PosRead|PosSearch|PosWrite); err != nil {
		return err
	}
	return fn(r)
}

// Add makes a key and wipes its payload. Only possessors of the ring have rights
// on it: to view and search it, to read and change it if the type allows that, and
// to revoke it. A key that expires is useless after that time, in whole seconds; 0
// is never.
func (r *Ring) Add(t Type, description string, payload []byte, expires time.Duration) (Serial, error) {
	defer Wipe(payload)
	n, err := unix.AddKey(string(t), description, payload, int(r.serial))
	if err != nil {
		return 0, explain("add", t, err)
	}
	s := Serial(n)
	if expires > 0 {
		_, err = unix.KeyctlInt(unix.KEYCTL_SET_TIMEOUT, n, max(1, int(expires/time.Second)), 0, 0)
		err = explain("expire", t, err)
	}
	if err == nil {
		err = r.permit(s, PosView|PosSearch|PosRead|PosWrite)
	}
	if err != nil {
		_ = r.Revoke(s)
		return 0, err
	}
	return s, nil
}

// Known says whether the kernel has a type of key. It offers an empty payload, of
// which no type makes a key that stays. Where keyrings are forbidden, as in many
// containers, that is an error: then nothing is known.
func Known(t Type) (known bool, err error) {
	err = Apart(func(r *Ring) error {
		offer := func(t Type) error {
			_, err := unix.AddKey(string(t), "vmlatch:probe", nil, int(r.serial))
			return err
		}
		if err := offer("vmlatch-no-type"); !errors.Is(err, unix.ENODEV) {
			return explain("add", "", err)
		}
		known = !errors.Is(offer(t), unix.ENODEV)
		return nil
	})
	return known, err
}

// Read returns a key's payload; the caller wipes it.
func (r *Ring) Read(s Serial) ([]byte, error) {
	for size := 0; ; {
		b := make([]byte, size)
		n, err := unix.KeyctlBuffer(unix.KEYCTL_READ, int(s), b, len(b))
		if err != nil {
			return nil, explain("read", "", err)
		}
		if n <= len(b) {
			return b[:n], nil
		}
		Wipe(b)
		size = n
	}
}

// Description is what the kernel tells of a key.
type Description struct {
	Type        Type
	UID, GID    int
	Permissions Permissions
	Text        string
}

// Describe asks the kernel about a key.
func (r *Ring) Describe(s Serial) (d Description, err error) {
	text, err := unix.KeyctlString(unix.KEYCTL_DESCRIBE, int(s))
	if err != nil {
		return d, explain("describe", "", err)
	}
	p := strings.SplitN(text, ";", 5)
	if len(p) != 5 {
		return d, fmt.Errorf("describe key: %q is no description", text)
	}
	uid, err1 := strconv.Atoi(p[1])
	gid, err2 := strconv.Atoi(p[2])
	perm, err3 := strconv.ParseUint(p[3], 16, 32)
	return Description{Type(p[0]), uid, gid, Permissions(perm), p[4]}, errors.Join(err1, err2, err3)
}

// Search finds a key of the ring.
func (r *Ring) Search(t Type, description string) (Serial, error) {
	n, err := unix.KeyctlSearch(int(r.serial), string(t), description, 0)
	return Serial(n), explain("search", t, err)
}

// Revoke makes a key useless at once, wherever it is held.
func (r *Ring) Revoke(s Serial) error {
	_, err := unix.KeyctlInt(unix.KEYCTL_REVOKE, int(s), 0, 0, 0)
	return explain("revoke", "", err)
}

// permit replaces permissions; without PosSetAttr it is the last time.
func (r *Ring) permit(s Serial, p Permissions) error {
	return explain("permit", "", unix.KeyctlSetperm(int(s), uint32(p)))
}

// Inherited is the session keyring that the current thread has from its parent.
func Inherited() (*Ring, error) {
	n, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
	return &Ring{Serial(n)}, explain("find", "", err)
}

// explain puts an errno in words (add_key(2), keyctl(2)).
func explain(op string, t Type, err error) error {
	if err == nil {
		return nil
	}
	e := &Error{Op: op, Type: t, Err: err}
	switch {
	case errors.Is(err, unix.ENODEV):
		e.Why = ErrNoType
	case errors.Is(err, unix.ENOKEY) && op == "add":
		e.Why = ErrNoneFree
	case errors.Is(err, unix.ENOKEY), errors.Is(err, unix.EKEYREVOKED), errors.Is(err, unix.EKEYEXPIRED):
		e.Why = ErrGone
	case errors.Is(err, unix.EDQUOT):
		e.Why, e.More = ErrQuota, quota()
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		e.Why = ErrDenied
	case errors.Is(err, unix.ENOSYS):
		e.Why = ErrNotSupported
	}
	return e
}

// quota reads the user's numbers (proc(5), /proc/key-users).
func quota() string {
	b, err := os.ReadFile("/proc/key-users")
	if err != nil {
		return ""
	}
	for line := range bytes.Lines(b) {
		id, rest, ok := strings.Cut(strings.TrimSpace(string(line)), ":")
		if f := strings.Fields(rest); ok && id == strconv.Itoa(os.Geteuid()) && len(f) == 4 {
			return fmt.Sprintf("keys %s, bytes %s", f[2], f[3])
		}
	}
	return ""
}
