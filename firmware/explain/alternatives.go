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
	return append(
		[][]alternative{{sweep}},
		append(dims, s.cpus(), s.profiles(), s.vmms(), s.svsms(), s.features())...)
}

func vcpuChange(from, to int) Change {
	return Change{
		"vcpus",
		fmt.Sprint(from),
		fmt.Sprint(to),
		fmt.Sprintf("the guest has %d virtual CPUs instead of %d", to, from),
	}
}

func (s *search) firmwares() []alternative {
	var list []alternative
	for _, f := range s.q.Firmwares {
		say := fmt.Sprintf("the firmware is %s instead of %s", f.Name, s.q.Firmware)
		list = append(list,
			with(Change{"firmware", s.q.Firmware, f.Name, say}, func(in *launch.Inputs) { in.Firmware = f.Layout }))
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
		list = append(list,
			with(Change{"cpu", own.String(), sig.String(), say}, func(in *launch.Inputs) { in.CPU = sig }))
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
	own, vmm := s.q.Inputs.Profile, s.q.Inputs.VMM
	says := map[launch.Profile]string{
		launch.INIT2: "the guest was initialised by KVM_SEV_INIT2 (legacy-vm-type=off), " +
			"whose registers include the FPU's",
		launch.Legacy: "the guest was initialised the old way (legacy-vm-type=on, or a kernel before 6.10), " +
			"without the FPU's registers",
	}
	switch vmm { // where vCPUs never have FPU registers, the profiles differ in RDX only
	case launch.EC2:
		says = map[launch.Profile]string{
			launch.INIT2:   "the guest was launched by EC2 as since April 2026, with RDX 0x600",
			launch.EC2RDX0: "the guest was launched by EC2 as before April 2026, with RDX 0",
		}
	case launch.GCE:
		says = nil
	}
	var list []alternative
	for i := range launch.Profiles() {
		if p := launch.Profile(i); p != own && says[p] != "" {
			list = append(list,
				with(Change{"vmsa", own.String(), p.String(), says[p]}, func(in *launch.Inputs) { in.Profile = p }))
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
			if v == launch.EC2 {
				old := with(Change{"vmm", own.String(), name, say + ", as before April 2026"},
					func(in *launch.Inputs) { in.VMM, in.Profile = v, launch.EC2RDX0 })
				list = append(list, old)
			}
		}
	}
	return list
}

func (s *search) svsms() []alternative {
	if s.q.Inputs.SVSM == nil {
		return nil
	}
	return []alternative{
		with(Change{"svsm", "given", "none", "no SVSM was loaded"}, func(in *launch.Inputs) { in.SVSM = nil }),
	}
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
		c := Change{
			"features",
			fmt.Sprintf("%#x", own),
			fmt.Sprintf("%#x", v),
			fmt.Sprintf("sev_features is %#x instead of %#x", v, own),
		}
		list = append(list, with(c, func(in *launch.Inputs) { in.Features = v }))
	}
	return list
}

// part is one thing that may stand in the kernel hash table instead.
type part struct {
	change Change
	edit   func(*sev.KernelHashes)
}

// parts are the alternatives for kernel, initrd and command line.
func (k *Kernel) parts() (kernels, initrds, cmdlinesOf []part) {
	empty := sha256.Sum256(nil)
	other := func(what, name string) Change {
		return Change{what, "as named", name, fmt.Sprintf("the %s differs: it is %s", what, name)}
	}
	for _, l := range cmdlines(k.Cmdline) {
		sum := sha256.Sum256([]byte(l.bytes))
		change := Change{"cmdline", fmt.Sprintf("%q", k.Cmdline), l.name, "the command line is " + l.name}
		cmdlinesOf = append(cmdlinesOf, part{change, func(h *sev.KernelHashes) { h.Cmdline = sum }})
	}
	for _, o := range k.OtherCmdlines {
		change := other("cmdline", o.Name)
		change.Say = "the command line differs: it is " + o.Name
		cmdlinesOf = append(cmdlinesOf, part{change, func(h *sev.KernelHashes) { h.Cmdline = o.Hash }})
	}
	if k.HasInitrd {
		initrds = append(
			initrds,
			part{
				Change{"initrd", "given", "none", "no initrd was loaded"},
				func(h *sev.KernelHashes) { h.Initrd = empty },
			},
		)
	}
	for _, o := range k.OtherConfigs {
		change := Change{"config", "as named", o.Name, "the configuration of the first boot differs: " + o.Name}
		initrds = append(initrds, part{change, func(h *sev.KernelHashes) { h.Initrd = o.Hash }})
	}
	for _, o := range k.OtherInitrds {
		initrds = append(initrds, part{other("initrd", o.Name), func(h *sev.KernelHashes) { h.Initrd = o.Hash }})
	}
	kernels = append(
		kernels,
		part{
			Change{"kernel", "given", "empty", "the kernel file was empty"},
			func(h *sev.KernelHashes) { h.Kernel = empty },
		},
	)
	for _, o := range k.OtherKernels {
		kernels = append(kernels, part{other("kernel", o.Name), func(h *sev.KernelHashes) { h.Kernel = o.Hash }})
	}
	return kernels, initrds, cmdlinesOf
}

// swap is kernel and initrd in each other's place: one change of both.
func (k *Kernel) swap() []part {
	if !k.HasInitrd {
		return nil
	}
	return []part{
		{
			Change{"kernel", "as named", "the initrd", "kernel and initrd were swapped"},
			func(h *sev.KernelHashes) { h.Kernel, h.Initrd = h.Initrd, h.Kernel },
		},
	}
}

// table is an alternative whose hash table has some parts changed; nil if that
// changes nothing.
func (s *search) table(parts ...part) alternative {
	h := *s.q.Inputs.Kernel
	var changes []Change
	for _, p := range parts {
		before := h
		if p.edit(&h); h == before {
			return nil
		}
		changes = append(changes, p.change)
	}
	return func(from candidate) candidate {
		to := candidate{in: from.in, sweep: from.sweep, changes: append(slices.Clone(from.changes), changes...)}
		to.in.Kernel = &h
		return to
	}
}

// kernels tries what the kernel hash table could hold instead.
func (s *search) kernels() []alternative {
	k := s.q.Kernel
	if s.q.Inputs.Kernel == nil {
		return s.unnamedKernels()
	}
	off := Change{
		"kernel-hashes",
		"on",
		"off",
		"kernel-hashes is off, or there is no kernel: kernel, initrd and command line were not measured",
	}
	list := []alternative{with(off, func(in *launch.Inputs) { in.Kernel = nil })}
	kernels, initrds, lines := k.parts()
	for _, p := range slices.Concat(lines, initrds, k.swap(), kernels) {
		if a := s.table(p); a != nil {
			list = append(list, a)
		}
	}
	return list
}

// unnamedKernels are for owners who named no kernel: what the host says, and files
// that may have been one.
func (s *search) unnamedKernels() []alternative {
	var list []alternative
	add := func(to, say string, h sev.KernelHashes) {
		list = append(list, with(Change{"kernel", "none", to, say}, func(in *launch.Inputs) { in.Kernel = &h }))
	}
	if h := s.q.Claimed; h != nil {
		add("one that the host names", "the host had a kernel measured, and none was named", *h)
	}
	if k := s.q.Kernel; k != nil {
		for _, o := range k.OtherKernels {
			h := sev.KernelHashes{Kernel: o.Hash, Initrd: sha256.Sum256(nil), Cmdline: sha256.Sum256([]byte("\x00"))}
			add(o.Name, "a kernel was measured: "+o.Name+", without initrd and command line", h)
			for _, i := range k.OtherInitrds {
				h := h
				h.Initrd = i.Hash
				add(o.Name+" with "+i.Name, "a kernel was measured: "+o.Name+", with the initrd "+i.Name, h)
			}
		}
	}
	return list
}

// kernelPairs are two of kernel, initrd and command line at once, and at last all
// three as the host names them.
func (s *search) kernelPairs() []alternative {
	k := s.q.Kernel
	if k == nil || s.q.Inputs.Kernel == nil {
		return nil
	}
	var list []alternative
	kernels, initrds, lines := k.parts()
	for _, dims := range [][2][]part{{lines, initrds}, {lines, kernels}, {kernels, initrds}, {lines, k.swap()}} {
		for _, a := range dims[0] {
			for _, b := range dims[1] {
				if two := s.table(a, b); two != nil {
					list = append(list, two)
				}
			}
		}
	}
	if h := s.q.Claimed; h != nil {
		all := Change{
			"kernel",
			"as named",
			"what the host names",
			"kernel, initrd and command line all differ: they are those that the host names",
		}
		list = append(list, with(all, func(in *launch.Inputs) { in.Kernel = h }))
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
