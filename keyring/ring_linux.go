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

// Ring is a session keyring, joined by the thread that may use it.
type Ring struct {
	serial Serial
	thread int // 0: any
}

// Apart runs fn on a thread of its own that has joined a new anonymous ring. The
// thread ends with fn: from then on only processes that fn started have the ring.
func Apart(fn func(*Ring) error) error { return apart("", fn) }

// Named is Apart with a ring of a name. Other processes of this user join the same
// ring by its name, as long as anybody has it. The key of a VM never belongs in one.
func Named(name string, fn func(*Ring) error) error {
	if err := checkRingName(name); err != nil {
		return err
	}
	return apart(name, fn)
}

func apart(name string, fn func(*Ring) error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked, so the thread ends here
		if unix.Gettid() == unix.Getpid() {
			// But not this one, for Go keeps the process's first thread.
			err := apart(name, fn)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- join(name, fn)
	}()
	return <-done
}

func join(name string, fn func(*Ring) error) error {
	var n int
	var err error
	// Nobody may link the ring to where it would outlive its processes, nor give
	// rights on it away.
	rights := Possessed
	if name == "" {
		n, err = unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0)
	} else {
		n, err = unix.KeyctlJoinSessionKeyring(name)
		rights |= UserView | UserSearch // or nobody could join it by its name
	}
	if err != nil {
		return explain("join", "", err)
	}
	r := &Ring{Serial(n), unix.Gettid()}
	if name != "" { // another user may have let everybody join a ring of this name
		d, err := r.Describe(r.serial)
		if err == nil && (d.UID != os.Geteuid() || d.Permissions&(GroupAny|OtherAny) != 0) {
			err = &Error{Op: "join", Why: ErrDenied, More: fmt.Sprintf("the keyring of this name is user %d's, with rights: %v", d.UID, d.Permissions)}
		}
		if err != nil {
			return err
		}
	}
	if err := r.SetPermissions(r.serial, rights); err != nil {
		// Whoever made a ring of this name has given that right up already.
		if d, e := r.Describe(r.serial); name == "" || e != nil || d.Permissions != rights {
			return err
		}
	}
	return fn(r)
}

// use is an error on another thread, which has other keyrings, or none.
func (r *Ring) use(op string) error {
	if tid := unix.Gettid(); r.thread != 0 && r.thread != tid {
		return &Error{Op: op, Why: ErrThread, More: fmt.Sprintf("thread %d has it, this is %d", r.thread, tid)}
	}
	return nil
}

// Add makes a key and wipes its payload. What [Check] refuses never reaches the
// kernel.
func (r *Ring) Add(k Key) (Serial, error) {
	defer Wipe(k.Payload)
	if err := r.use("add"); err != nil {
		return 0, err
	}
	if err := Check(k.Type, k.Description, k.Payload); err != nil {
		return 0, &Error{Op: "add", Type: k.Type, Why: ErrInvalid, More: err.Error()}
	}
	// The kernel would change a key of the same description, whosever it is.
	if s, err := r.Search(k.Type, k.Description); err == nil {
		return 0, &Error{Op: "add", Type: k.Type, Why: ErrExists, More: fmt.Sprintf("key %d", s)}
	}
	n, err := unix.AddKey(string(k.Type), k.Description, k.Payload, int(r.serial))
	if err != nil {
		return 0, explain("add", k.Type, err)
	}
	s := Serial(n)
	if k.Expires > 0 {
		err = r.SetTimeout(s, k.Expires)
	}
	if err == nil {
		rights := k.Permissions
		if rights == 0 {
			rights = Possessed
		}
		err = r.SetPermissions(s, rights)
	}
	if err != nil {
		_ = r.Revoke(s)
		return 0, err
	}
	return s, nil
}

// SetTimeout makes a key useless after a time, rounded up to whole seconds; 0 takes
// a timeout away. It needs the right SetAttr.
func (r *Ring) SetTimeout(s Serial, after time.Duration) error {
	if after < 0 {
		return &Error{Op: "expire", Why: ErrInvalid, More: "a timeout cannot be negative"}
	}
	return r.control("expire", unix.KEYCTL_SET_TIMEOUT, s, int((after+time.Second-1)/time.Second))
}

// SetPermissions replaces a key's permissions; without a right SetAttr among them
// it is the last time.
func (r *Ring) SetPermissions(s Serial, p Permissions) error {
	return r.control("permit", unix.KEYCTL_SETPERM, s, int(p))
}

// Revoke makes a key useless at once, wherever it is held.
func (r *Ring) Revoke(s Serial) error { return r.control("revoke", unix.KEYCTL_REVOKE, s, 0) }

// control is a keyctl(2) call with a key and a number.
func (r *Ring) control(op string, command int, s Serial, arg int) error {
	if err := r.use(op); err != nil {
		return err
	}
	_, err := unix.KeyctlInt(command, int(s), arg, 0, 0)
	return explain(op, "", err)
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
	if err := r.use("read"); err != nil {
		return nil, err
	}
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

// Describe asks the kernel about a key.
func (r *Ring) Describe(s Serial) (d Description, err error) {
	if err := r.use("describe"); err != nil {
		return d, err
	}
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
	if err := r.use("search"); err != nil {
		return 0, err
	}
	n, err := unix.KeyctlSearch(int(r.serial), string(t), description, 0)
	return Serial(n), explain("search", t, err)
}

// Inherited is the session keyring that the current thread has from its parent,
// as have all threads that joined no other.
func Inherited() (*Ring, error) {
	n, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
	return &Ring{serial: Serial(n)}, explain("find", "", err)
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
	case errors.Is(err, unix.ENOKEY) && op == "add" && t == TypeMKTME:
		e.Why = ErrNoneFree
	case errors.Is(err, unix.ENOKEY) && op == "add":
		e.Why = ErrNoMaster
	case errors.Is(err, unix.ENOKEY), errors.Is(err, unix.EKEYREVOKED), errors.Is(err, unix.EKEYEXPIRED):
		e.Why = ErrGone
	case errors.Is(err, unix.EDQUOT):
		e.Why, e.More = ErrQuota, quota()
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		e.Why = ErrDenied
		if t == TypeMKTME && op == "add" {
			e.More = "it takes CAP_SYS_RESOURCE or CAP_SYS_ADMIN"
		}
	case errors.Is(err, unix.EINVAL):
		e.Why = ErrInvalid
	case errors.Is(err, unix.EOPNOTSUPP):
		e.Why = ErrCannot
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
