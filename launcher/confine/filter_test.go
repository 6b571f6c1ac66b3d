package confine

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// judge is what a filter says of a system call: the kernel's interpreter, for the instructions that
// are used.
func judge(t *testing.T, p []unix.SockFilter, arch uint32, call uint64, args ...uint64) uint32 {
	t.Helper()
	data := make([]byte, 64) // struct seccomp_data
	binary.NativeEndian.PutUint32(data[dataCall:], uint32(call))
	binary.NativeEndian.PutUint32(data[dataArch:], arch)
	for i, a := range args {
		binary.NativeEndian.PutUint64(data[dataArgs+8*i:], a)
	}
	var word uint32
	for i := 0; i < len(p); i++ {
		in := p[i]
		jump := func(yes bool) {
			if yes {
				i += int(in.Jt)
			} else {
				i += int(in.Jf)
			}
		}
		switch in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			word = binary.NativeEndian.Uint32(data[in.K:])
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			jump(word == in.K)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			jump(word >= in.K)
		case unix.BPF_RET | unix.BPF_K:
			return in.K
		default:
			t.Fatalf("instruction %d is %+v", i, in)
		}
	}
	t.Fatal("the filter ends without an answer")
	return 0
}

// TestFilter: what a box refuses is refused by whatever way a call is made, and nothing else.
func TestFilter(t *testing.T) {
	const yes, no = unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	const i386, foreign = 0x40000003, auditArch ^ 1
	strict := program((&Box{}).refusals())
	lenient := program((&Box{VSock: true, Rings: true, Owns: true}).refusals())
	for name, c := range map[string]struct {
		arch    uint32
		call    uint64
		args    []uint64
		strict  uint32
		lenient uint32
	}{
		"to hide from its user":         {auditArch, unix.SYS_PRCTL, []uint64{unix.PR_SET_DUMPABLE}, no, no},
		"to name a thread":              {auditArch, unix.SYS_PRCTL, []uint64{unix.PR_SET_NAME}, yes, yes},
		"an ordinary call":              {auditArch, unix.SYS_READ, []uint64{3}, yes, yes},
		"of another architecture":       {i386, unix.SYS_READ, nil, no, no},
		"of an unknown one":             {foreign, unix.SYS_READ, nil, no, no},
		"by the numbers of x32":         {auditArch, 0x40000000 | unix.SYS_READ, nil, no, no},
		"keys":                          {auditArch, unix.SYS_KEYCTL, nil, no, no},
		"ptrace":                        {auditArch, unix.SYS_PTRACE, nil, no, no},
		"memory of others":              {auditArch, unix.SYS_PROCESS_VM_WRITEV, nil, no, no},
		"descriptors of others":         {auditArch, unix.SYS_PIDFD_GETFD, nil, no, no},
		"own limits":                    {auditArch, unix.SYS_PRLIMIT64, []uint64{0, 7}, yes, yes},
		"limits of others":              {auditArch, unix.SYS_PRLIMIT64, []uint64{7}, no, no},
		"a lease":                       {auditArch, unix.SYS_FCNTL, []uint64{3, unix.F_SETLEASE}, no, no},
		"a lease, upper half":           {auditArch, unix.SYS_FCNTL, []uint64{3, 1<<32 | unix.F_SETLEASE}, no, no},
		"a lock":                        {auditArch, unix.SYS_FCNTL, []uint64{3, unix.F_SETLK}, yes, yes},
		"a socket":                      {auditArch, unix.SYS_SOCKET, []uint64{unix.AF_UNIX}, yes, yes},
		"a socket to VMs":               {auditArch, unix.SYS_SOCKET, []uint64{unix.AF_VSOCK}, no, yes},
		"a ring":                        {auditArch, unix.SYS_IO_URING_SETUP, []uint64{1}, no, yes},
		"a file's mode":                 {auditArch, unix.SYS_FCHMOD, []uint64{3, 0}, no, yes},
		"a file's owner":                {auditArch, unix.SYS_FCHOWN, []uint64{3, 0}, no, yes},
		"an interface's state":          {auditArch, unix.SYS_IOCTL, []uint64{3, unix.TUNGETIFF}, yes, yes},
		"an interface that stays":       {auditArch, unix.SYS_IOCTL, []uint64{3, unix.TUNSETPERSIST}, no, no},
		"an interface of another user":  {auditArch, unix.SYS_IOCTL, []uint64{3, unix.TUNSETOWNER}, no, no},
		"an interface of another kind":  {auditArch, unix.SYS_IOCTL, []uint64{3, unix.TUNSETLINK}, no, no},
		"an interface of another group": {auditArch, unix.SYS_IOCTL, []uint64{3, unix.TUNSETGROUP}, no, no},
	} {
		if got := judge(t, strict, c.arch, c.call, c.args...); got != c.strict {
			t.Errorf("%s: %#x, want %#x", name, got, c.strict)
		}
		if got := judge(t, lenient, c.arch, c.call, c.args...); got != c.lenient {
			t.Errorf("%s, where all is allowed that can be: %#x, want %#x", name, got, c.lenient)
		}
	}
}
