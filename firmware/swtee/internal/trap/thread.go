package trap

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"
)

// thread is an attached, stopped thread.
type thread struct {
	t       *Tracer
	tid     int
	syscall uint64        // address of a syscall instruction
	signals []unix.Signal // that came while it was stepped
}

const (
	archSetCPUID = 0x1012 // Linux, arch/x86/include/uapi/asm/prctl.h
	eventStop    = 128    // PTRACE_EVENT_STOP
)

// interrupted reports whether the kernel would make a call again: where calls can be
// interrupted, attaching itself interrupts them (Linux, include/linux/errno.h:
// ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND).
func interrupted(rax uint64) bool {
	e := -int64(rax)
	return e >= 512 && e <= 514
}

// errFault means that an instruction faulted instead of being executed.
var errFault = errors.New("the instruction faulted")

// step executes one instruction. Signals that arrive meanwhile are kept.
func (th *thread) step() error {
	var before, now unix.PtraceRegs
	if err := unix.PtraceGetRegs(th.tid, &before); err != nil {
		return err
	}
	for {
		if err := unix.PtraceSingleStep(th.tid); err != nil {
			return err
		}
		s, err := th.t.wait(th.tid)
		if err != nil {
			return err
		}
		if err := unix.PtraceGetRegs(th.tid, &now); err != nil {
			return err
		}
		switch {
		case s.event != 0:
		case s.sig == unix.SIGTRAP:
			if now.Rip != before.Rip {
				return nil
			} // otherwise left over from before
		case s.sig == unix.SIGSEGV && now.Rip == before.Rip:
			return errFault
		default:
			th.keep(s.sig)
		}
	}
}

// call makes the thread do a system call and restores its registers.
func (th *thread) call(nr, a, b uint64) error {
	var saved unix.PtraceRegs
	if err := unix.PtraceGetRegs(th.tid, &saved); err != nil {
		return err
	}
	regs := saved
	regs.Rip, regs.Rax, regs.Orig_rax, regs.Rdi, regs.Rsi = th.syscall, nr, ^uint64(0), a, b
	if err := unix.PtraceSetRegs(th.tid, &regs); err != nil {
		return err
	}
	if err := th.step(); err != nil {
		return err
	}
	if err := unix.PtraceGetRegs(th.tid, &regs); err != nil {
		return err
	}
	if err := unix.PtraceSetRegs(th.tid, &saved); err != nil {
		return err
	}
	if e := int64(regs.Rax); e < 0 {
		return unix.Errno(-e)
	}
	return nil
}

// keep remembers a signal until the thread goes on. A signal that continues a program
// cancels earlier ones that stop it.
func (th *thread) keep(sig unix.Signal) {
	if sig == unix.SIGCONT {
		th.signals = slices.DeleteFunc(th.signals, func(s unix.Signal) bool { return s == unix.SIGSTOP })
	}
	th.signals = append(th.signals, sig)
}

// next takes one of the kept signals, 0 if none is left.
func (th *thread) next() int {
	if len(th.signals) == 0 {
		return 0
	}
	s := th.signals[0]
	th.signals = th.signals[1:]
	return int(s)
}

func (th *thread) detach() error {
	sig := th.next()
	for _, more := range th.signals { // blocked or queued like any other signal
		_, _, _ = unix.RawSyscall(unix.SYS_TKILL, uintptr(th.tid), uintptr(more), 0)
	}
	_, _, e := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_DETACH, uintptr(th.tid), 0, uintptr(sig), 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

// untilCPUID lets the thread run until it asks for the leaf, answers, and turns
// faulting off. Other leaves are executed by the processor.
func (th *thread) untilCPUID(leaf CPUID) error {
	sig := th.next()
	for {
		if err := unix.PtraceCont(th.tid, sig); err != nil {
			return err
		}
		s, err := th.t.wait(th.tid)
		if err != nil {
			return err
		}
		sig = 0
		if th.t.release.Load() {
			if s.event == 0 && s.sig != releaseSignal {
				th.keep(s.sig)
			}
			return th.call(unix.SYS_ARCH_PRCTL, archSetCPUID, 1)
		}
		switch {
		case s.event == unix.PTRACE_EVENT_CLONE:
			if err := th.freeChild(); err != nil {
				return err
			}
		case s.event == eventStop && s.sig != unix.SIGTRAP: // a group stop: leave it stopped
			if _, _, e := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_LISTEN, uintptr(th.tid), 0, 0, 0, 0); e != 0 {
				return e
			}
			if _, err := th.t.wait(th.tid); err != nil {
				return err
			}
		case s.event != 0:
		case s.sig == unix.SIGSEGV:
			found, done, err := th.cpuid(leaf)
			if err != nil || done {
				return err
			}
			if !found {
				sig = int(unix.SIGSEGV)
			}
		default:
			sig = int(s.sig)
		}
	}
}

// freeChild detaches from a thread that the attached one has created.
func (th *thread) freeChild() error {
	tid, err := unix.PtraceGetEventMsg(th.tid)
	if err != nil {
		return err
	}
	child := &thread{t: th.t, tid: int(tid), syscall: th.syscall}
	if _, err := th.t.wait(child.tid); err != nil {
		return nil // it is gone already
	}
	return errors.Join(child.call(unix.SYS_ARCH_PRCTL, archSetCPUID, 1), child.detach())
}

// cpuid handles a fault: found if it is at a CPUID instruction, done if that asked for
// the leaf.
func (th *thread) cpuid(leaf CPUID) (found, done bool, err error) {
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(th.tid, &regs); err != nil {
		return false, false, err
	}
	var insn [2]byte
	n, err := unix.PtracePeekText(th.tid, uintptr(regs.Rip), insn[:])
	if err != nil || n != 2 || insn != [2]byte{0x0f, 0xa2} {
		return false, false, nil
	}
	if uint32(regs.Rax) != leaf.Leaf {
		if err := th.call(unix.SYS_ARCH_PRCTL, archSetCPUID, 1); err != nil {
			return true, false, err
		}
		if err := th.step(); err != nil {
			return true, false, err
		}
		return true, false, th.call(unix.SYS_ARCH_PRCTL, archSetCPUID, 0)
	}
	regs.Rax, regs.Rbx, regs.Rcx, regs.Rdx = uint64(leaf.A), uint64(leaf.B), uint64(leaf.C), uint64(leaf.D)
	regs.Rip += 2
	regs.Orig_rax = ^uint64(0)
	if err := unix.PtraceSetRegs(th.tid, &regs); err != nil {
		return true, true, err
	}
	return true, true, th.call(unix.SYS_ARCH_PRCTL, archSetCPUID, 1)
}
