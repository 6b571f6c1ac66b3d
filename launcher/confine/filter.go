package confine

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// refusal is a system call that a box refuses with EPERM: always, or by one of its arguments.
type refusal struct {
	call uintptr
	arg  int    // which argument decides; -1 for none
	is   uint32 // refused if its lower half is this
	not  bool   // or, instead, if it is not
}

func always(calls ...uintptr) (list []refusal) {
	for _, c := range calls {
		list = append(list, refusal{call: c, arg: -1})
	}
	return list
}

// refusals are what neither namespaces nor Landlock keep in: limits of other processes of the same
// user, its keys, sockets to virtual machines, and what the owner of a file or of a network
// interface may do to it by a descriptor, such as a lock that others must open, or an interface
// that must go with the VM. QEMU's own filter has more, and comes later.
func (b *Box) refusals() []refusal {
	list := always(unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL, unix.SYS_PTRACE,
		unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_GETFD)
	list = append(
		list,
		refusal{call: unix.SYS_PRLIMIT64, arg: 0, is: 0, not: true}, // of another process
		refusal{call: unix.SYS_FCNTL, arg: 1, is: unix.F_SETLEASE},
		refusal{call: unix.SYS_PRCTL, arg: 0, is: unix.PR_SET_DUMPABLE}, // it would hide from its user
		refusal{call: unix.SYS_IOCTL, arg: 1, is: unix.TUNSETPERSIST},
		refusal{call: unix.SYS_IOCTL, arg: 1, is: unix.TUNSETOWNER},
		refusal{call: unix.SYS_IOCTL, arg: 1, is: unix.TUNSETGROUP},
		refusal{call: unix.SYS_IOCTL, arg: 1, is: unix.TUNSETLINK},
	)
	if !b.Rings { // by which it would get sockets of any kind
		list = append(list, refusal{call: unix.SYS_IO_URING_SETUP, arg: -1})
	}
	if !b.VSock {
		list = append(list, refusal{call: unix.SYS_SOCKET, arg: 0, is: unix.AF_VSOCK})
	}
	if !b.Owns {
		list = append(list, always(ownership...)...)
	}
	return list
}

// Offsets in struct seccomp_data (seccomp(2)), of which arguments have 64 bits.
const (
	dataCall = 0
	dataArch = 4
	dataArgs = 16
)

// program is a filter for the kernel (Linux, Documentation/userspace-api/seccomp_filter.rst). Calls
// of another architecture, which have other numbers, are refused.
func program(list []refusal) []unix.SockFilter {
	const (
		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		least = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		end   = unix.BPF_RET | unix.BPF_K
	)
	refuse := unix.SockFilter{Code: end, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)}
	p := []unix.SockFilter{
		{Code: load, K: dataArch},
		{Code: equal, K: auditArch, Jt: 1},
		refuse,
		{Code: load, K: dataCall},
		{Code: least, K: 0x40000000, Jf: 1}, // x32
		refuse,
	}
	for _, r := range list {
		switch {
		case r.arg < 0:
			p = append(p, unix.SockFilter{Code: equal, K: uint32(r.call), Jf: 1}, refuse)
			continue
		case r.not:
			p = append(p, unix.SockFilter{Code: equal, K: uint32(r.call), Jf: 4},
				unix.SockFilter{Code: load, K: uint32(dataArgs + 8*r.arg)},
				unix.SockFilter{Code: equal, K: r.is, Jt: 1}, refuse)
		default:
			p = append(p, unix.SockFilter{Code: equal, K: uint32(r.call), Jf: 4},
				unix.SockFilter{Code: load, K: uint32(dataArgs + 8*r.arg)},
				unix.SockFilter{Code: equal, K: r.is, Jf: 1}, refuse)
		}
		p = append(p, unix.SockFilter{Code: load, K: dataCall})
	}
	return append(p, unix.SockFilter{Code: end, K: unix.SECCOMP_RET_ALLOW})
}

// filter puts this thread, and what it becomes, under the box's filter. It needs no_new_privs.
func (b *Box) filter() error {
	p := program(b.refusals())
	f := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&f)))
	if errno != 0 {
		return os.NewSyscallError("seccomp", errno)
	}
	return nil
}
