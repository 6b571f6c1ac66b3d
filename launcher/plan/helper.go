package plan

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/confine"
	"github.com/vmlatch/vmlatch/launcher/internal/argv"
)

// Helper is a further process of the VM. It is started before QEMU and ends with it:
// one of its descriptors is a socket whose other end only QEMU has, and what does not
// end by itself is found, by what was written down of it or by the helpers' lock, and
// killed. A launch in which it ends before the guest runs has failed; a running guest
// is left without it.
type Helper struct {
	Role    string   `json:"role"`
	Meaning string   `json:"meaning"`
	Argv    []string `json:"argv"`
	FDs     []FD     `json:"fds"`
	Silent  bool     `json:"-"` // its output is dropped, as it is what keeps the log of it
	// Confinement is the box that it runs in; nil if it confines itself, or is not confined.
	Confinement *confine.Box `json:"confinement,omitempty"`
}

// CommandLine is the helper's command as a person would type it.
func (h *Helper) CommandLine() string { return argv.Quote(h.Argv) }

// Help adds a helper that QEMU talks to over a socket pair. argv makes the helper's
// command line from the number of its end of the pair; the number of QEMU's end is
// returned.
func (b *Builder) Help(role, meaning string, argv func(fd int) []string) (fd int) {
	return b.plan.AddHelper(role, meaning, argv)
}

// AddHelper is [Builder.Help] for a plan that is built.
func (p *Plan) AddHelper(role, meaning string, argv func(fd int) []string) (fd int) {
	h := Helper{Role: role, Meaning: meaning}
	own := inherit(&h.FDs, FD{Role: role, Meaning: "its end of a socket pair with QEMU", open: pairEnd(role)})
	inherit(&h.FDs, FD{Role: "helper-lock", Meaning: "the lock by which it is found", open: helperLock})
	h.Argv = argv(own)
	p.Helpers = append(p.Helpers, h)
	end := FD{Role: role, Meaning: "QEMU's end of a socket pair with " + meaning, open: pairEnd(role)}
	return inherit(&p.FDs, end)
}

// pairEnd makes a socket pair at its first call for a role, and returns its other end
// at the second.
func pairEnd(role string) Opener {
	return bothEnds(role, func() (first, second *os.File, err error) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, nil, os.NewSyscallError("socketpair", err)
		}
		return os.NewFile(uintptr(fds[0]), role), os.NewFile(uintptr(fds[1]), role), nil
	})
}

// bothEnds makes two ends of a channel at its first call for a role and returns the first,
// and the second at the second call.
func bothEnds(role string, create func() (first, second *os.File, err error)) Opener {
	return func(o *Opening) (*os.File, error) {
		if other := o.pairs[role]; other != nil {
			delete(o.pairs, role)
			return other, nil
		}
		first, second, err := create()
		if err != nil {
			return nil, err
		}
		if o.pairs == nil {
			o.pairs = map[string]*os.File{}
		}
		o.pairs[role] = second
		return first, nil
	}
}

// helperLock gives each helper the lock that all helpers of a VM hold together.
func helperLock(o *Opening) (*os.File, error) {
	if o.lock == nil {
		var err error
		if o.lock, err = o.Dir.LockHelpers(); err != nil {
			return nil, err
		}
	}
	return duplicate(o.lock)
}

// Close closes what openers made and nothing took.
func (o *Opening) Close() {
	if o.lock != nil {
		_ = o.lock.Close()
		o.lock = nil
	}
	for _, f := range o.pairs {
		_ = f.Close()
	}
	for _, c := range o.Kept {
		_ = c.Close()
	}
	for _, f := range o.Read {
		_ = f.Close()
	}
	o.pairs, o.Kept, o.Read = nil, nil, nil
}
