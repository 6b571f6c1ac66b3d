package trap

import (
	"golang.org/x/sys/unix"
)

// Filter lists which system calls stop for an answer. All others run as usual.
type Filter struct {
	// OpenReadWrite stops open and openat with O_RDWR, as devices are opened.
	OpenReadWrite bool
	// Ioctls stop by their whole request, IoctlTypes by the request's type byte.
	Ioctls     []Ioctl
	IoctlTypes []byte
	// Succeed are requests that return 0 immediately: neither made nor passed to Serve.
	Succeed []uint32
}

// Ioctl is a request, with any argument or with one.
type Ioctl struct {
	Request uint32
	Arg     uint64 // only its low half is compared
	WithArg bool
}

// Requests are requests with any argument.
func Requests(requests ...uint32) []Ioctl {
	var list []Ioctl
	for _, r := range requests {
		list = append(list, Ioctl{Request: r})
	}
	return list
}

// Offsets in struct seccomp_data (Linux, include/uapi/linux/seccomp.h).
const (
	dataNr   = 0
	dataArch = 4
	dataArgs = 16
)

const auditArchX86_64 = 0xC000003E // Linux, include/uapi/linux/audit.h

// program compiles the filter. Every block ends in a return, so that jumps stay
// inside their block.
func (f Filter) program() []unix.SockFilter {
	const (
		load = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		and  = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
		jeq  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		ret  = unix.BPF_RET | unix.BPF_K
	)
	var p []unix.SockFilter
	add := func(code uint16, k uint32) { p = append(p, unix.SockFilter{Code: code, K: k}) }
	unless := func(k uint32, skip int) { p = append(p, unix.SockFilter{Code: jeq, K: k, Jf: uint8(skip)}) }
	arg := func(n int) { add(load, uint32(dataArgs+8*n)) } // its low half

	add(load, dataArch)
	p = append(p, unix.SockFilter{Code: jeq, K: auditArchX86_64, Jt: 1})
	add(ret, unix.SECCOMP_RET_ALLOW)

	// A group of tests on one system call, with the argument that they look at.
	group := func(nr uint32, tests []unix.SockFilter) {
		add(load, dataNr)
		unless(nr, len(tests)+1)
		p = append(p, tests...)
		add(ret, unix.SECCOMP_RET_ALLOW)
	}
	collect := func(build func()) []unix.SockFilter {
		saved := p
		p = nil
		build()
		tests := p
		p = saved
		return tests
	}
	if f.OpenReadWrite {
		for nr, flags := range map[uint32]int{unix.SYS_OPEN: 1, unix.SYS_OPENAT: 2} {
			group(nr, collect(func() {
				arg(flags)
				add(and, unix.O_ACCMODE)
				unless(unix.O_RDWR, 1)
				add(ret, unix.SECCOMP_RET_USER_NOTIF)
			}))
		}
	}
	group(unix.SYS_IOCTL, collect(func() {
		arg(1)
		for _, r := range f.Succeed {
			unless(r, 1)
			add(ret, unix.SECCOMP_RET_ERRNO) // with errno 0
		}
		for _, r := range f.Ioctls {
			if !r.WithArg {
				unless(r.Request, 1)
				add(ret, unix.SECCOMP_RET_USER_NOTIF)
				continue
			}
			unless(r.Request, 4)
			arg(2)
			unless(uint32(r.Arg), 1)
			add(ret, unix.SECCOMP_RET_USER_NOTIF)
			arg(1) // for the tests that follow
		}
		add(and, 0xff00)
		for _, t := range f.IoctlTypes {
			unless(uint32(t)<<8, 1)
			add(ret, unix.SECCOMP_RET_USER_NOTIF)
		}
	}))
	add(ret, unix.SECCOMP_RET_ALLOW)
	return p
}
