package trap

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Structures of user notifications (Linux, include/uapi/linux/seccomp.h).
type notification struct {
	id    uint64
	pid   uint32
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

type response struct {
	id    uint64
	val   int64
	errno int32
	flags uint32
}

type addFD struct {
	id         uint64
	flags      uint32
	srcFD      uint32
	newFD      uint32
	newFDFlags uint32
}

// Call is a system call that waits for its answer. It is answered once.
type Call struct {
	TID  int // the thread that makes it
	Nr   int
	Args [6]uint64

	p       *Process
	id      uint64
	ip      uint64
	watched []span
}

// span is a piece of the program's memory.
type span struct {
	addr uint64
	n    int
}

// Watch names memory that distinguishes this call from the next one like it. Where calls
// can be interrupted, a call with the same arguments and the same memory is the same call,
// made again.
func (c *Call) Watch(addr uint64, n int) { c.watched = append(c.watched, span{addr, n}) }

// memory is the content of the watched memory; nil if none is watched.
func (c *Call) memory() []byte {
	var all []byte
	for _, w := range c.watched {
		b := make([]byte, w.n)
		if c.transfer(w.addr, b, unix.ProcessVMReadv) != nil {
			return nil
		}
		all = append(all, b...)
	}
	return all
}

// errGone means that the call was interrupted, or its thread has died.
var errGone = errors.New("the system call is not waiting any more")

// Return answers with a result.
func (c *Call) Return(v int64) { c.answer(response{val: v}) }

// Fail answers with an error.
func (c *Call) Fail(e unix.Errno) { c.answer(response{errno: -int32(e)}) }

// Continue lets the kernel do the call.
func (c *Call) Continue() { c.answer(response{flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}) }

// dismiss lets the thread go on; the result does not matter.
func (c *Call) dismiss() {
	r := response{id: c.id}
	_, _ = c.p.ioctl(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&r))
}

func (c *Call) answer(r response) {
	r.id = c.id
	// A signal can come between the kernel's taking the answer and the thread's:
	// then the call is made again although it was answered.
	if len(c.watched) > 0 {
		c.p.remember(c, func(again *Call) { again.answer(r) })
	}
	if _, err := c.p.ioctl(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&r)); err != nil {
		c.p.remember(c, func(again *Call) { again.answer(r) })
	}
}

// ReturnFile answers with a new descriptor for an open file of this process.
func (c *Call) ReturnFile(fd int, closeOnExec bool) {
	a := addFD{id: c.id, flags: unix.SECCOMP_ADDFD_FLAG_SEND, srcFD: uint32(fd)}
	if closeOnExec {
		a.newFDFlags = unix.O_CLOEXEC
	}
	// A signal between the request and its execution would leave the call
	// answered with 0 and no descriptor (Linux, kernel/seccomp.c,
	// seccomp_notify_addfd), and Go's scheduler sends signals at any time.
	restore := blockSignals()
	_, err := c.p.ioctl(unix.SECCOMP_IOCTL_NOTIF_ADDFD, unsafe.Pointer(&a))
	restore()
	if err == unix.EINVAL { // before Linux 5.14 in two steps
		a.flags = 0
		var n int
		if n, err = c.p.ioctl(unix.SECCOMP_IOCTL_NOTIF_ADDFD, unsafe.Pointer(&a)); err == nil {
			c.Return(int64(n))
			return
		}
	}
	switch {
	case err == nil:
	case err != unix.ENOENT && err != unix.ESRCH && err != unix.EINPROGRESS:
		c.Fail(err.(unix.Errno)) // such as the program's limit on descriptors
	case !c.p.killable:
		if kept, e := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3); e == nil {
			c.p.remember(c, func(again *Call) {
				again.ReturnFile(kept, closeOnExec)
				_ = unix.Close(kept)
			})
		}
	}
}

// blockSignals keeps all signals from the calling thread until restore.
func blockSignals() (restore func()) {
	runtime.LockOSThread()
	var all, before unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^uint64(0)
	}
	err := unix.PthreadSigmask(unix.SIG_BLOCK, &all, &before)
	return func() {
		if err == nil {
			_ = unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
		}
		runtime.UnlockOSThread()
	}
}

// valid fails if the thread is no longer waiting. If its calls could only be killed, it is
// dead: its number may belong to another thread by now, and what was read from its memory
// means nothing. If its calls can be interrupted, the thread makes the same call again,
// with the same memory, and gets the answer that is being prepared; starting over each
// time might never end.
func (c *Call) valid() error {
	if !c.p.killable {
		return nil
	}
	id := c.id
	if _, err := c.p.ioctl(unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&id)); err != nil {
		return errGone
	}
	return nil
}

// maxRead bounds what one call may make this process read.
const maxRead = 1 << 30

// Read copies memory of the calling program.
func (c *Call) Read(addr uint64, n int) ([]byte, error) {
	if n < 0 || n > maxRead {
		return nil, fmt.Errorf("read of %d bytes: %w", n, unix.EFAULT)
	}
	b := make([]byte, n)
	if err := c.transfer(addr, b, unix.ProcessVMReadv); err != nil {
		return nil, err
	}
	return b, c.valid()
}

// Write copies into memory of the calling program.
func (c *Call) Write(addr uint64, b []byte) error {
	if err := c.valid(); err != nil {
		return err
	}
	return c.transfer(addr, b, unix.ProcessVMWritev)
}

func (c *Call) transfer(
	addr uint64, b []byte, do func(int, []unix.Iovec, []unix.RemoteIovec, uint) (int, error),
) error {
	for done := 0; done < len(b); {
		local := []unix.Iovec{{Base: &b[done], Len: uint64(len(b) - done)}}
		remote := []unix.RemoteIovec{{Base: uintptr(addr) + uintptr(done), Len: len(b) - done}}
		n, err := do(c.TID, local, remote, 0)
		if err == nil && n == 0 {
			err = unix.EFAULT
		}
		if err != nil {
			return fmt.Errorf("memory of the program at %#x: %w", addr, err)
		}
		done += n
	}
	return nil
}

// ReadString copies a NUL-terminated string of at most 4095 bytes.
func (c *Call) ReadString(addr uint64) (string, error) {
	var s []byte
	for len(s) < unix.PathMax {
		// Up to a page boundary: the next page may not be mapped.
		b, err := c.Read(addr, min(256, 4096-int(addr&4095)))
		if err != nil {
			return "", err
		}
		if i := bytes.IndexByte(b, 0); i >= 0 {
			return string(append(s, b[:i]...)), nil
		}
		s, addr = append(s, b...), addr+uint64(len(b))
	}
	return "", unix.ENAMETOOLONG
}
