package trap

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// CPUID is one leaf's answer.
type CPUID struct {
	Leaf       uint32
	A, B, C, D uint32
}

// Tracer attaches to single threads of a program for the few instructions in which they
// must see a processor other than the host's, and detaches from them again.
type Tracer struct {
	p        *Process
	requests chan request
	done     chan struct{}
	armed    chan struct{} // holds a token while a thread is attached
	thread   atomic.Int64  // the attached thread
	release  atomic.Bool   // the thread is to be detached
	// Attached, if set, is called while a thread is attached, before it goes on.
	Attached func()
	// Failed, if set, is called with the reason why a thread could not be attached.
	Failed func(error)
}

type request struct {
	tid    int
	ip     uint64 // after the call's instruction
	leaf   *CPUID
	answer func()
	change func(*unix.PtraceRegs)
}

// NewTracer starts a tracer; Stop ends it.
func (p *Process) NewTracer() *Tracer {
	t := &Tracer{p: p, requests: make(chan request), done: make(chan struct{}), armed: make(chan struct{}, 1)}
	go func() {
		defer close(t.done)
		runtime.LockOSThread() // all requests must come from the thread that attached
		defer runtime.UnlockOSThread()
		for r := range t.requests {
			t.release.Store(false)
			t.thread.Store(int64(r.tid))
			if err := t.serve(r); err != nil && t.Failed != nil {
				t.Failed(err)
			}
			t.thread.Store(0)
			<-t.armed
		}
	}()
	return t
}

// Stop ends the tracer once no thread is attached.
func (t *Tracer) Stop() {
	close(t.requests)
	<-t.done
}

// Arm answers a call such that its thread is attached when it goes on. If leaf is given,
// the thread sees that answer the first time it asks for that leaf; then the tracer
// detaches from it. Arm returns once the call has been answered.
func (t *Tracer) Arm(c *Call, leaf *CPUID, answer func()) {
	t.arm(request{c.TID, c.ip, leaf, answer, nil})
}

// ArmAgain is Arm for a call that is to be made again, with changed registers,
// instead of being answered.
func (t *Tracer) ArmAgain(c *Call, leaf *CPUID, change func(*unix.PtraceRegs)) {
	t.arm(request{c.TID, c.ip, leaf, c.dismiss, change})
}

func (t *Tracer) arm(r request) {
	answered := make(chan struct{})
	answer := r.answer
	r.answer = func() { answer(); close(answered) }
	t.armed <- struct{}{}
	t.requests <- r
	<-answered
}

// Busy reports whether a thread is attached: Arm would wait until it is detached.
func (t *Tracer) Busy() bool { return len(t.armed) > 0 }

// releaseSignal wakes a thread that is to be detached. Programs ignore it unless they ask
// for it, and it never gets past the tracer.
const releaseSignal = unix.SIGURG

// Release detaches the attached thread, which has not asked for its leaf and will not. It
// does not wait.
func (t *Tracer) Release() {
	if tid := t.thread.Load(); tid != 0 && t.Busy() && !t.release.Swap(true) {
		_, _, _ = unix.RawSyscall(unix.SYS_TKILL, uintptr(tid), uintptr(releaseSignal), 0)
	}
}

// errEnded means that the thread has died: another wait reports its end.
var errEnded = errors.New("the thread has ended")

// stop is a stop of a traced thread.
type stop struct {
	sig   unix.Signal
	event int
}

// siginfo is what waitid returns (Linux, include/uapi/asm-generic/siginfo.h).
type siginfo struct {
	signo, errno, code, _ int32
	pid, uid, status      int32
	_                     [100]byte
}

// wait waits for the thread's next stop. It does not consume the end of the program
// itself, for which this process waits elsewhere. It does consume the end of any other
// thread, which would otherwise never be reported.
func (t *Tracer) wait(tid int) (stop, error) {
	for {
		var info siginfo
		look := func(options uintptr) unix.Errno {
			_, _, e := unix.Syscall6(unix.SYS_WAITID, unix.P_PID, uintptr(tid),
				uintptr(unsafe.Pointer(&info)), options|unix.WALL, 0, 0)
			return e
		}
		switch e := look(unix.WEXITED | unix.WSTOPPED | unix.WNOWAIT); e {
		case 0:
		case unix.EINTR:
			continue
		default:
			return stop{}, e
		}
		const exited, killed, dumped = 1, 2, 3 // CLD_EXITED, CLD_KILLED, CLD_DUMPED
		if info.code == exited || info.code == killed || info.code == dumped {
			if tid != t.p.PID {
				_ = look(unix.WEXITED)
			}
			return stop{}, errEnded
		}
		s := stop{unix.Signal(info.status & 0x7f), int(info.status >> 8)}
		info = siginfo{}
		if e := look(unix.WSTOPPED | unix.WNOHANG); e != 0 || info.pid == 0 {
			continue // it died between the two
		}
		return s, nil
	}
}

func (t *Tracer) serve(r request) error {
	answered := false
	answer := func() {
		if !answered {
			answered = true
			r.answer()
		}
	}
	defer answer()
	// Threads that are created meanwhile inherit that CPUID faults.
	_, _, e := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(r.tid), 0, unix.PTRACE_O_TRACECLONE, 0, 0)
	if e != 0 {
		return fmt.Errorf("attach to thread %d: %w", r.tid, e)
	}
	// The thread waits for its answer and cannot be stopped before it has it.
	if err := unix.PtraceInterrupt(r.tid); err != nil {
		return fmt.Errorf("interrupt thread %d: %w", r.tid, err)
	}
	answer()
	err := t.traced(r)
	if errors.Is(err, errEnded) || errors.Is(err, unix.ESRCH) {
		return nil // the program died, which the tracer does not report
	}
	return err
}

func (t *Tracer) traced(r request) error {
	th := &thread{t: t, tid: r.tid, syscall: r.ip - 2} // where the call's instruction is, 0F 05
	// Whatever stops the thread first does so before it is back in the program.
	s, err := t.wait(r.tid)
	if err != nil {
		return err
	}
	if s.event == 0 {
		th.keep(s.sig)
	}
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(r.tid, &regs); err != nil {
		return err
	}
	if r.change != nil && regs.Rip != r.ip {
		return errors.Join(fmt.Errorf("thread %d stopped at %#x instead of %#x", r.tid, regs.Rip, r.ip), th.detach())
	}
	if r.change != nil || interrupted(regs.Rax) {
		regs.Rip, regs.Rax = th.syscall, regs.Orig_rax
	}
	if r.change != nil {
		r.change(&regs)
	}
	regs.Orig_rax = ^uint64(0) // in no call: nothing for the kernel to restart
	if err := unix.PtraceSetRegs(r.tid, &regs); err != nil {
		return err
	}
	if r.leaf != nil {
		if err := th.call(unix.SYS_ARCH_PRCTL, archSetCPUID, 0); err != nil {
			return errors.Join(fmt.Errorf("CPUID faulting: %w", err), th.detach())
		}
	}
	if t.Attached != nil {
		t.Attached()
	}
	if r.leaf != nil {
		if err := th.untilCPUID(*r.leaf); err != nil {
			return err
		}
	}
	return th.detach()
}

// CPUIDFaulting reports whether this processor and kernel can trap CPUID. It turns the
// trap on and off for the calling thread, which executes no CPUID in between.
func CPUIDFaulting() bool {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if _, _, e := unix.RawSyscall(unix.SYS_ARCH_PRCTL, archSetCPUID, 0, 0); e != 0 {
		return false
	}
	_, _, e := unix.RawSyscall(unix.SYS_ARCH_PRCTL, archSetCPUID, 1, 0)
	return e == 0
}
