package explain

import (
	"crypto/sha256"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/ovmf/ovmftest"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/launch"
	"github.com/vmlatch/vmlatch/firmware/sev/session"
)

// firmware and otherFirmware are small images with everything in them. Layouts keep
// what they have hashed.
var firmware, otherFirmware = sync.OnceValue(func() *launch.Layout {
	return mustLayout(ovmftest.AmdSev())
}), sync.OnceValue(func() *launch.Layout {
	image := ovmftest.AmdSev()
	image[100] ^= 1
	return mustLayout(image)
})

func mustLayout(b []byte) *launch.Layout {
	img, err := ovmf.Parse(b)
	if err != nil {
		panic(err)
	}
	l, err := launch.LayoutOf(img)
	if err != nil {
		panic(err)
	}
	return l
}

func query(t testing.TB, technology launch.Technology) *Query {
	t.Helper()
	const cmdline = "console=ttyS0 root=/dev/vda1"
	k := &Kernel{
		HasInitrd: true, Cmdline: cmdline,
		OtherKernels: []NamedHash{{"old-vmlinuz", sha256.Sum256([]byte("old"))}},
	}
	h := sev.KernelHashes{
		Kernel:  sha256.Sum256([]byte("kernel")),
		Initrd:  sha256.Sum256([]byte("initrd")),
		Cmdline: sha256.Sum256([]byte(cmdline + "\x00")),
	}
	cpu, err := launch.ParseCPU("EPYC-Milan")
	if err != nil {
		t.Fatal(err)
	}
	in := launch.Inputs{Technology: technology, Firmware: firmware(), Kernel: &h, VCPUs: 2, CPU: cpu}
	if technology == launch.SNP {
		in.Features = launch.DefaultFeatures
	}
	return &Query{Inputs: in, Kernel: k, Firmware: "OVMF.fd", Firmwares: []Firmware{{"OVMF-old.fd", otherFirmware()}}}
}

// differences edit a launch, by the words that must explain them.
var differences = []struct {
	say   string
	what  string
	alone bool // means something for plain SEV
	edit  func(q *Query, in *launch.Inputs)
}{
	{"kernel-hashes is off", "kernel", true, func(q *Query, in *launch.Inputs) { in.Kernel = nil }},
	{"without the NUL at its end", "kernel", true, func(q *Query, in *launch.Inputs) {
		in.Kernel = edit(in, func(h *sev.KernelHashes) { h.Cmdline = sha256.Sum256([]byte(q.Kernel.Cmdline)) })
	}},
	{"with a newline at its end", "kernel", true, func(q *Query, in *launch.Inputs) {
		in.Kernel = edit(in,
			func(h *sev.KernelHashes) { h.Cmdline = sha256.Sum256([]byte(q.Kernel.Cmdline + "\n\x00")) })
	}},
	{"no initrd was loaded", "kernel", true, func(q *Query, in *launch.Inputs) {
		in.Kernel = edit(in, func(h *sev.KernelHashes) { h.Initrd = sha256.Sum256(nil) })
	}},
	{"kernel and initrd were swapped", "kernel", true, func(q *Query, in *launch.Inputs) {
		in.Kernel = edit(in, func(h *sev.KernelHashes) { h.Kernel, h.Initrd = h.Initrd, h.Kernel })
	}},
	{"the kernel differs: it is old-vmlinuz", "kernel", true, func(q *Query, in *launch.Inputs) {
		in.Kernel = edit(in, func(h *sev.KernelHashes) { h.Kernel = q.Kernel.OtherKernels[0].Hash })
	}},
	{
		"the firmware is OVMF-old.fd instead of OVMF.fd",
		"firmware",
		true,
		func(q *Query, in *launch.Inputs) { in.Firmware = q.Firmwares[0].Layout },
	},
	{"has 512 virtual CPUs instead of 2", "vcpus", false, func(q *Query, in *launch.Inputs) { in.VCPUs = 512 }},
	{"has 1 virtual CPUs instead of 2", "vcpus", false, func(q *Query, in *launch.Inputs) { in.VCPUs = 1 }},
	{
		"the CPU model is EPYC-Genoa",
		"cpu",
		false,
		func(q *Query, in *launch.Inputs) { in.CPU = launch.SignatureOf(25, 17, 0) },
	},
	{"initialised the old way", "vmsa", false, func(q *Query, in *launch.Inputs) { in.Profile = launch.Legacy }},
	{"launched by the VMM gce", "vmm", false, func(q *Query, in *launch.Inputs) { in.VMM = launch.GCE }},
	{"sev_features is 0x21", "features", false, func(q *Query, in *launch.Inputs) { in.Features = 0x21 }},
	{"sev_features is 0x80000000", "features", false, func(q *Query, in *launch.Inputs) { in.Features = 1 << 31 }},
}

func edit(in *launch.Inputs, change func(*sev.KernelHashes)) *sev.KernelHashes {
	h := *in.Kernel
	change(&h)
	return &h
}

// TestEachDifferenceIsFound, alone and in pairs, in each technology.
func TestEachDifferenceIsFound(t *testing.T) {
	for _, technology := range []launch.Technology{launch.SEV, launch.SEVES, launch.SNP} {
		for i, a := range differences {
			t.Run(string(technology)+"/"+a.say, func(t *testing.T) {
				t.Parallel()
				if technology == launch.SEV && !a.alone {
					return // means nothing there
				}
				found(t, technology, a.edit, a.say)
				for j, b := range differences[i+1:] {
					// GCE's vCPUs start with no model's signature, and with no FPU state.
					none := b.what == "vmm" && (a.what == "vmsa" || a.what == "cpu")
					if a.what == b.what || technology == launch.SEV && !b.alone || none ||
						technology != launch.SEV && j%3 != 0 {
						continue
					}
					found(t, technology, func(q *Query, in *launch.Inputs) { a.edit(q, in); b.edit(q, in) }, a.say,
						b.say)
				}
			})
		}
	}
}

func found(t *testing.T, technology launch.Technology, change func(*Query, *launch.Inputs), says ...string) {
	t.Helper()
	q := query(t, technology)
	in := q.Inputs
	change(q, &in)
	d, err := launch.Digest(in)
	if err != nil {
		t.Fatal(err)
	}
	q.Observed = Digest(d)
	r := Search(q)
	if !r.Found || len(r.Changes) != len(says) {
		t.Errorf("%v: %+v", says, r)
		return
	}
	for _, say := range says {
		if !strings.Contains(r.Sentence(), say) {
			t.Errorf("%q does not say %q", r.Sentence(), say)
		}
	}
}

// TestKernelPairs: two parts of the hash table at once, and what the host names.
func TestKernelPairs(t *testing.T) {
	t.Parallel()
	old := sha256.Sum256([]byte("old"))
	claimed := sev.KernelHashes{Kernel: [32]byte{1}, Initrd: [32]byte{2}, Cmdline: [32]byte{3}}
	for _, c := range []struct {
		edit func(*sev.KernelHashes)
		says []string
	}{
		{func(h *sev.KernelHashes) {
			h.Kernel, h.Initrd = old, sha256.Sum256(nil)
		}, []string{"old-vmlinuz", "no initrd"}},
		{func(h *sev.KernelHashes) {
			h.Kernel, h.Initrd, h.Cmdline = h.Initrd, h.Kernel, sha256.Sum256([]byte{0})
		}, []string{"swapped", "the command line is empty"}},
		{func(h *sev.KernelHashes) { *h = claimed }, []string{"those that the host names"}},
	} {
		q := query(t, launch.SEV)
		q.Claimed = &claimed
		in := q.Inputs
		in.Kernel = edit(&in, c.edit)
		d, err := launch.Digest(in)
		if err != nil {
			t.Fatal(err)
		}
		q.Observed = Digest(d)
		r := Search(q)
		for _, say := range c.says {
			if !r.Found || !strings.Contains(r.Sentence(), say) {
				t.Errorf("%q does not say %q", r.Sentence(), say)
			}
		}
	}
	// none was named
	q := query(t, launch.SEV)
	in := q.Inputs
	q.Inputs.Kernel = nil
	in.Kernel = &sev.KernelHashes{Kernel: old, Initrd: sha256.Sum256(nil), Cmdline: sha256.Sum256([]byte{0})}
	d, err := launch.Digest(in)
	if err != nil {
		t.Fatal(err)
	}
	q.Observed = Digest(d)
	if r := Search(q); !r.Found || !strings.Contains(r.Sentence(), "a kernel was measured: old-vmlinuz") {
		t.Errorf("%+v", r)
	}
}

func TestAgreementAndNone(t *testing.T) {
	t.Parallel()
	q := query(t, launch.SNP)
	d, err := launch.Digest(q.Inputs)
	if err != nil {
		t.Fatal(err)
	}
	q.Observed = Digest(d)
	if r := Search(q); !r.Found || len(r.Changes) != 0 || r.Tried != 1 {
		t.Errorf("%+v", r)
	}
	d[0] ^= 1
	if r := Search(q); r.Found || r.Tried < 50_000 || r.Sentence() != "" {
		t.Errorf("%+v", r)
	}
}

// TestMeasurement finds what differs under a MAC: digest and circumstances.
func TestMeasurement(t *testing.T) {
	t.Parallel()
	q := query(t, launch.SEV)
	digest, err := launch.Digest(q.Inputs)
	if err != nil {
		t.Fatal(err)
	}
	off := q.Inputs
	off.Kernel = nil
	noKernel, err := launch.Digest(off)
	if err != nil {
		t.Fatal(err)
	}
	keys := &session.Keys{TIK: [16]byte{1, 2, 3}}
	policy, build := sev.PolicyNoDebug|sev.PolicyNoKeySharing, sev.Build{Major: 1, Minor: 55, Build: 24}
	other := build
	other.Build = 21
	newer := build
	newer.Minor = 51
	for _, c := range []struct {
		digest []byte
		build  sev.Build
		policy sev.Policy
		says   []string
	}{
		{digest, build, policy, nil},
		{digest, other, policy, []string{"is build 21, and not 24"}},
		{digest, newer, policy, []string{"API version 1.51, and not 1.55"}},
		{digest, build, sev.PolicyNoKeySharing, []string{"the policy is 0x2"}},
		{noKernel, build, policy, []string{"kernel-hashes is off"}},
		{noKernel, other, policy, []string{"kernel-hashes is off", "build 21"}},
		{digest, other, sev.PolicyNoDebug, []string{"the policy is 0x1", "build 21"}},
	} {
		var m sev.Measurement
		m.Nonce = [16]byte{9}
		m.MAC = keys.LaunchMAC(c.build, c.policy, [32]byte(c.digest), m.Nonce)
		q.Observed = &Measurement{Keys: keys, Seen: m, Build: build, Policy: policy}
		r := Search(q)
		if !r.Found || len(r.Changes) != len(c.says) {
			t.Errorf("%v: %+v", c.says, r)
			continue
		}
		for _, say := range c.says {
			if !strings.Contains(r.Sentence(), say) {
				t.Errorf("%q does not say %q", r.Sentence(), say)
			}
		}
	}
}

// BenchmarkNone is the longest search: of an SNP digest that nothing explains.
func BenchmarkNone(b *testing.B) {
	full := mustLayout(ovmftest.AmdSev(ovmftest.Size(4 << 20)))
	for _, technology := range []launch.Technology{launch.SEVES, launch.SNP} {
		b.Run(string(technology), func(b *testing.B) {
			for b.Loop() {
				q := query(b, technology)
				q.Inputs.Firmware = full
				q.Observed = Digest(make([]byte, 48))
				began := time.Now()
				r := Search(q)
				b.ReportMetric(float64(r.Tried)/time.Since(began).Seconds(), "tries/s")
				b.ReportMetric(float64(r.Tried), "tries")
			}
		})
	}
}
