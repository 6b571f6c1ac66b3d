package keyring

import (
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Ring is a session keyring, joined by the thread that may use it.
type Ring struct {
	serial Serial
	thread int    // 0: any
	calls  kernel // nil: this kernel's
}

// Apart runs fn on a thread of its own that has joined a new anonymous ring. The
// thread ends with fn: from then on only processes that fn started have the ring.
func Apart(fn func(*Ring) error) error { return apart(linux{}, fn) }

func apart(k kernel, fn func(*Ring) error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked, so the thread ends here
		if unix.Gettid() == unix.Getpid() {
			// But not this one, for Go keeps the process's first thread.
			err := apart(k, fn)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- join(k, fn)
	}()
	return <-done
}

func join(k kernel, fn func(*Ring) error) error {
	n, err := k.join()
	if err != nil {
		return explain("join", "", err)
	}
	r := &Ring{n, unix.Gettid(), k}
	// No process may link the ring to where it would outlive its processes, nor give
	// rights on it away.
	if err := r.SetPermissions(r.serial, Possessed); err != nil {
		return err
	}
	return fn(r)
}

func (r *Ring) kernel() kernel {
	if r.calls == nil {
		return linux{}
	}
	return r.calls
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
	// The kernel would change a key of the same description.
	if s, err := r.Search(k.Type, k.Description); err == nil {
		return 0, &Error{Op: "add", Type: k.Type, Why: ErrExists, More: fmt.Sprintf("key %d", s)}
	}
	s, err := r.kernel().add(k.Type, k.Description, k.Payload, r.serial)
	if err != nil {
		return 0, explain("add", k.Type, err)
	}
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

// SetPermissions replaces a key's permissions; without the right SetAttr among them
// this is the last time.
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
	return explain(op, "", r.kernel().control(command, s, arg))
}

// Known reports whether the kernel has a type of key. It offers an empty payload, of
// which no type makes a key that stays. Where keyrings are forbidden, as in many
// containers, that is an error: then nothing is known.
func Known(t Type) (known bool, err error) { return isKnown(linux{}, t) }

func isKnown(k kernel, t Type) (known bool, err error) {
	err = apart(k, func(r *Ring) error {
		offer := func(t Type) error {
			_, err := k.add(t, "vmlatch:probe", nil, r.serial)
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

// Describe asks the kernel about a key.
func (r *Ring) Describe(s Serial) (d Description, err error) {
	if err := r.use("describe"); err != nil {
		return d, err
	}
	text, err := r.kernel().describe(s)
	if err != nil {
		return d, explain("describe", "", err)
	}
	return parseDescription(text)
}

// parseDescription reads what the kernel tells of a key (keyctl(2), KEYCTL_DESCRIBE).
func parseDescription(text string) (d Description, err error) {
	p := strings.SplitN(text, ";", 5)
	if len(p) != 5 {
		return d, fmt.Errorf("describe key: %q is not a description", text)
	}
	uid, err1 := strconv.Atoi(p[1])
	gid, err2 := strconv.Atoi(p[2])
	perm, err3 := strconv.ParseUint(p[3], 16, 32)
	if err := errors.Join(err1, err2, err3); err != nil {
		return d, fmt.Errorf("describe key: %w", err)
	}
	return Description{Type(p[0]), uid, gid, Permissions(perm), p[4]}, nil
}

// Search finds a key of the ring.
func (r *Ring) Search(t Type, description string) (Serial, error) {
	if err := r.use("search"); err != nil {
		return 0, err
	}
	n, err := r.kernel().search(r.serial, t, description)
	return n, explain("search", t, err)
}

// Inherited is the session keyring that the current thread has from its parent,
// as have all threads that joined no other.
func Inherited() (*Ring, error) {
	n, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
	if err != nil {
		return nil, explain("find", "", err)
	}
	return &Ring{serial: Serial(n)}, nil
}
