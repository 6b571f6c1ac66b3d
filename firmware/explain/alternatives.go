package explain

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/launch"
)

// alternative makes another candidate of one.
type alternative func(candidate) candidate

// with is an alternative that changes the inputs.
func with(c Change, edit func(*launch.Inputs)) alternative {
	return func(from candidate) candidate {
		to := candidate{in: from.in, sweep: from.sweep, changes: append(slices.Clone(from.changes), c)}
		edit(&to.in)
		return to
	}
}

// alternatives are what is tried, by what they change: two of one kind never go
// together. Likely ones come first.
func (s *search) alternatives() [][]alternative {
	dims := [][]alternative{s.kernels(), s.firmwares()}
	if s.q.Inputs.Technology == launch.SEV {
		return dims
	}
	sweep := func(from candidate) candidate { from.sweep = true; return from }
	return append([][]alternative{{sweep}}, append(dims, s.cpus(), s.profiles(), s.vmms(), s.svsms(), s.features())...)
}

func vcpuChange(from, to int) Change {
	return Change{"vcpus", fmt.Sprint(from), fmt.Sprint(to), fmt.Sprintf("the guest has %d virtual CPUs instead of %d", to, from)}
}

func (s *search) firmwares() []alternative {
	var list []alternative
	for _, f := range s.q.Firmwares {
		say := fmt.Sprintf("the firmware is %s instead of %s", f.Name, s.q.Firmware)
		list = append(list, with(Change{"firmware", s.q.Firmware, f.Name, say}, func(in *launch.Inputs) { in.Firmware = f.Layout }))
	}
	return list
}

func (s *search) cpus() []alternative {
	own := s.q.Inputs.CPU
	var list []alternative
	seen := map[launch.Signature]bool{own: true}
	add := func(sig launch.Signature) {
		if seen[sig] {
			return
		}
		seen[sig] = true
		say := fmt.Sprintf("the CPU model is %v instead of %v", sig, own)
		list = append(list, with(Change{"cpu", own.String(), sig.String(), say}, func(in *launch.Inputs) { in.CPU = sig }))
	}
	for _, name := range launch.CPUs() {
		if sig, err := launch.ParseCPU(name); err == nil {
			add(sig)
		}
	}
	add(0)
	return list
}

func (s *search) profiles() []alternative {
	own := s.q.Inputs.Profile
	says := map[launch.Profile]string{
		launch.INIT2:   "the guest was initialised by KVM_SEV_INIT2 (legacy-vm-type=off), whose registers include the FPU's",
		launch.Legacy:  "the guest was initialised the old way (legacy-vm-type=on, or a kernel before 6.10), without the FPU's registers",
		launch.EC2RDX0: "the guest was launched by EC2 as before April 2026, with RDX 0",
	}
	var list []alternative
	for i := range launch.Profiles() {
		if p := launch.Profile(i); p != own {
			list = append(list, with(Change{"vmsa", own.String(), p.String(), says[p]}, func(in *launch.Inputs) { in.Profile = p }))
		}
	}
	return list
}

func (s *search) vmms() []alternative {
	own := s.q.Inputs.VMM
	var list []alternative
	for i, name := range launch.VMMs() {
		if v := launch.VMM(i); v != own {
			say := fmt.Sprintf("the guest was launched by the VMM %s instead of %s", name, own)
			list = append(list, with(Change{"vmm", own.String(), name, say}, func(in *launch.Inputs) { in.VMM = v }))
		}
	}
	return list
}

func (s *search) svsms() []alternative {
	if s.q.Inputs.SVSM == nil {
		return nil
	}
	return []alternative{with(Change{"svsm", "given", "none", "no SVSM was loaded"}, func(in *launch.Inputs) { in.SVSM = nil })}
}

// features tries 0x0, 0x1 and 0x21, which kernels set by themselves, every single
// bit, and every single bit besides the expected ones.
func (s *search) features() []alternative {
	own := s.q.Inputs.Features
	values := []uint64{0, 1, 0x21}
	for bit := range 64 {
		values = append(values, own^1<<bit, 1<<bit)
	}
	var list []alternative
	seen := map[uint64]bool{own: true}
	for _, v := range values {
		if seen[v] {
			continue
		}
		seen[v] = true
		c := Change{"features", fmt.Sprintf("%#x", own), fmt.Sprintf("%#x", v), fmt.Sprintf("sev_features is %#x instead of %#x", v, own)}
		list = append(list, with(c, func(in *launch.Inputs) { in.Features = v }))
	}
	return list
}

// kernels tries what the kernel hash table could hold instead.
func (s *search) kernels() []alternative {
	k := s.q.Kernel
	var list []alternative
	add := func(what, from, to, say string, h *sev.KernelHashes) {
		list = append(list, with(Change{what, from, to, say}, func(in *launch.Inputs) { in.Kernel = h }))
	}
	if k == nil {
		if h := s.q.Claimed; h != nil {
			add("kernel", "none", "one that the host names", "the host had a kernel measured, and none was named", h)
		}
		return list
	}
	own := *s.q.Inputs.Kernel
	empty := sha256.Sum256(nil)
	add("kernel-hashes", "on", "off", "kernel-hashes is off, or there is no kernel: kernel, initrd and command line were not measured", nil)
	edit := func(change func(*sev.KernelHashes)) *sev.KernelHashes {
		h := own
		change(&h)
		if h == own {
			return nil
		}
		return &h
	}
	one := func(what, from, to, say string, change func(*sev.KernelHashes)) {
		if h := edit(change); h != nil {
			add(what, from, to, say, h)
		}
	}
	for _, l := range cmdlines(k.Cmdline) {
		one("cmdline", fmt.Sprintf("%q", k.Cmdline), l.name, "the command line is "+l.name, func(h *sev.KernelHashes) { h.Cmdline = sha256.Sum256([]byte(l.bytes)) })
	}
	if k.HasInitrd {
		one("initrd", "given", "none", "no initrd was loaded", func(h *sev.KernelHashes) { h.Initrd = empty })
		one("kernel", "as named", "the initrd", "kernel and initrd were swapped", func(h *sev.KernelHashes) { h.Kernel, h.Initrd = h.Initrd, h.Kernel })
	}
	one("kernel", "given", "empty", "the kernel file was empty", func(h *sev.KernelHashes) { h.Kernel = empty })
	for _, o := range k.OtherKernels {
		one("kernel", "as named", o.Name, "the kernel is another one: "+o.Name, func(h *sev.KernelHashes) { h.Kernel = o.Hash })
	}
	for _, o := range k.OtherInitrds {
		one("initrd", "as named", o.Name, "the initrd is another one: "+o.Name, func(h *sev.KernelHashes) { h.Initrd = o.Hash })
	}
	for _, o := range k.OtherCmdlines {
		one("cmdline", fmt.Sprintf("%q", k.Cmdline), o.Name, "the command line is another one: "+o.Name, func(h *sev.KernelHashes) { h.Cmdline = o.Hash })
	}
	return list
}

// kernelPairs are two of kernel, initrd and command line at once.
func (s *search) kernelPairs() []alternative {
	k := s.q.Kernel
	if k == nil {
		return nil
	}
	own := *s.q.Inputs.Kernel
	var list []alternative
	pair := func(a, b Change, h sev.KernelHashes) {
		list = append(list, func(from candidate) candidate {
			to := candidate{in: from.in, sweep: from.sweep, changes: append(slices.Clone(from.changes), a, b)}
			to.in.Kernel = &h
			return to
		})
	}
	for _, l := range cmdlines(k.Cmdline) {
		change := Change{"cmdline", fmt.Sprintf("%q", k.Cmdline), l.name, "the command line is " + l.name}
		h := own
		h.Cmdline = sha256.Sum256([]byte(l.bytes))
		if k.HasInitrd {
			g := h
			g.Initrd = sha256.Sum256(nil)
			pair(change, Change{"initrd", "given", "none", "no initrd was loaded"}, g)
		}
		for _, o := range k.OtherKernels {
			g := h
			g.Kernel = o.Hash
			pair(change, Change{"kernel", "as named", o.Name, "the kernel is another one: " + o.Name}, g)
		}
		for _, o := range k.OtherInitrds {
			g := h
			g.Initrd = o.Hash
			pair(change, Change{"initrd", "as named", o.Name, "the initrd is another one: " + o.Name}, g)
		}
	}
	for _, a := range k.OtherKernels {
		for _, b := range k.OtherInitrds {
			g := own
			g.Kernel, g.Initrd = a.Hash, b.Hash
			pair(Change{"kernel", "as named", a.Name, "the kernel is another one: " + a.Name}, Change{"initrd", "as named", b.Name, "the initrd is another one: " + b.Name}, g)
		}
	}
	return list
}

// line is a command line by what it is.
type line struct{ name, bytes string }

// cmdlines are other bytes whose hash may stand for a command line. The right ones
// end in one NUL.
func cmdlines(own string) []line {
	all := []line{
		{"empty", "\x00"},
		{"with a newline at its end", own + "\n\x00"},
		{"without its last newline", strings.TrimSuffix(own, "\n") + "\x00"},
		{"without the NUL at its end", own},
		{"with two NULs at its end", own + "\x00\x00"},
		{"with CR and LF at its end", own + "\r\n\x00"},
		{"with a space at its end", own + " \x00"},
		{"with a space before it", " " + own + "\x00"},
		{"without white space around it", strings.TrimSpace(own) + "\x00"},
		{"with single spaces between its words", strings.Join(strings.Fields(own), " ") + "\x00"},
		{"in double quotes", `"` + own + `"` + "\x00"},
		{"in single quotes", "'" + own + "'\x00"},
		{"without quotes around it", strings.Trim(own, `"'`) + "\x00"},
	}
	seen := map[string]bool{own + "\x00": true}
	return slices.DeleteFunc(all, func(l line) bool {
		twice := seen[l.bytes]
		seen[l.bytes] = true
		return twice
	})
}
