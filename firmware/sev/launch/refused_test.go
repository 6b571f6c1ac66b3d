package launch

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/ovmf/ovmftest"
	"github.com/vmlatch/vmlatch/firmware/sev"
)

var testKernel = &sev.KernelHashes{Kernel: [32]byte{1}, Initrd: [32]byte{2}, Cmdline: [32]byte{3}}

// TestInputsRefused: inputs for which no platform gives a digest.
func TestInputsRefused(t *testing.T) {
	good := func(technology Technology) Inputs {
		return Inputs{
			Technology: technology,
			Firmware:   layoutOf(t, ovmftest.AmdSev()),
			VCPUs:      2,
			CPU:        SignatureOf(25, 1, 1),
		}
	}
	without := func(options ...ovmftest.Option) *Layout { return layoutOf(t, ovmftest.Image(options...)) }
	section := func(s ...ovmf.Section) *Layout {
		return without(ovmftest.ResetBlock(1), ovmftest.HashArea(0x810c00, 0x400), ovmftest.SEVMetadata(s...))
	}
	svsm := &SVSM{Image: &ovmf.Image{Bytes: make([]byte, 4096)}}
	for name, c := range map[string]struct {
		technology Technology
		edit       func(in *Inputs)
		want       error
		say        string
	}{
		"no firmware":    {SEV, func(in *Inputs) { in.Firmware = nil }, sev.ErrNoFirmware, ""},
		"empty firmware": {SEV, func(in *Inputs) { in.Firmware = &Layout{} }, sev.ErrNoFirmware, ""},
		"technology":     {"tdx", func(*Inputs) {}, ErrInputs, `technology "tdx"`},
		"no vCPUs":       {SEVES, func(in *Inputs) { in.VCPUs = 0 }, ErrInputs, "0 vCPUs, must be 1 to 4096"},
		"too many":       {SNP, func(in *Inputs) { in.VCPUs = MaxVCPUs + 1 }, ErrInputs, "4097 vCPUs"},
		"no reset": {
			SEVES,
			func(in *Inputs) { in.Firmware = without(ovmftest.HashArea(1, 1)) },
			ErrNoReset,
			"",
		},
		"no metadata": {
			SNP,
			func(in *Inputs) { in.Firmware = without(ovmftest.ResetBlock(1)) },
			ErrNoMetadata,
			"",
		},
		"alignment": {
			SNP,
			func(in *Inputs) { in.Firmware = layoutOf(t, ovmftest.AmdSev(ovmftest.Size(65535))) },
			ErrAlignment,
			"",
		},
		"SVSM on SEV-ES": {SEVES, func(in *Inputs) { in.SVSM = svsm }, ErrInputs, "an SVSM needs SEV-SNP"},
		"SVSM of no page": {
			SNP,
			func(in *Inputs) { in.SVSM = &SVSM{Image: svsm.Image, VarsSize: 1} },
			ErrInputs,
			"do not fit below 4 GiB",
		},
		"variables below": {
			SNP,
			func(in *Inputs) { in.SVSM = &SVSM{Image: svsm.Image, VarsSize: -4096} },
			ErrInputs,
			"do not fit below 4 GiB",
		},
		"SVSM unknown": {
			SNP,
			func(in *Inputs) { in.SVSM = svsm },
			ErrInputs,
			"no entry that says where it starts",
		},
		"no hash area": {SEV, func(in *Inputs) {
			in.Firmware, in.Kernel = layoutOf(t, ovmftest.Generic()), testKernel
		}, sev.ErrNoHashTable, "base=0x0 size=0x0"},
		"no hash section": {SNP, func(in *Inputs) {
			in.Firmware = section(ovmf.Section{GPA: 0x1000, Size: 0x1000, Type: ovmf.SectionMemory})
			in.Kernel = testKernel
		}, sev.ErrNoHashTable, "no SEV-SNP section for them"},
		"large hash section": {SNP, func(in *Inputs) {
			in.Firmware, in.Kernel = section(ovmf.Section{Size: 0x2000, Type: ovmf.SectionKernelHashes}), testKernel
		}, sev.ErrNoHashTable, "its section has 8192 bytes"},
		"hash table over its page": {SNP, func(in *Inputs) {
			in.Firmware = without(ovmftest.ResetBlock(1), ovmftest.HashArea(0x810f51, 0x400),
				ovmftest.SEVMetadata(ovmf.Section{Size: 0x1000, Type: ovmf.SectionKernelHashes}))
			in.Kernel = testKernel
		}, sev.ErrNoHashTable, "base=0x810f51"},
		"section": {SNP, func(in *Inputs) {
			in.Firmware = section(ovmf.Section{Size: 0x1000, Type: 7})
		}, ErrInputs, "unknown type 0x7"},
		"memory": {SNP, func(in *Inputs) {
			in.Firmware = section(ovmf.Section{Size: 1 << 30, Type: 1}, ovmf.Section{
				GPA: 1 << 30, Size: 0x1000,
				Type: 1,
			})
		}, ErrInputs, "1073745920 bytes of memory"},
	} {
		t.Run(name, func(t *testing.T) {
			in := good(c.technology)
			c.edit(&in)
			d, err := Digest(in)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.say) || d != nil {
				t.Errorf("digest %x, %v, want none and %v with %q", d, err, c.want, c.say)
			}
		})
	}
	in := good(SEVES)
	in.SVSM = svsm
	if p, err := RegisterPage(in, 0); err == nil {
		t.Errorf("a register page of %d bytes for an SVSM without a start, want an error", len(p))
	}
	one := good(SEVES)
	one.VCPUs, one.Firmware = 1, without(ovmftest.HashArea(1, 1))
	if _, err := Digest(one); err != nil {
		t.Errorf("one vCPU without a reset block: %v, want a digest", err)
	}
	most := good(SNP)
	most.VCPUs = MaxVCPUs
	if _, err := Digest(most); err != nil {
		t.Errorf("%d vCPUs: %v, want a digest", MaxVCPUs, err)
	}
}

// TestHashesAtTheEndOfAPage: a table that just fits its page.
func TestHashesAtTheEndOfAPage(t *testing.T) {
	const at = 4096 - sev.HashTableSize
	in := Inputs{Technology: SNP, VCPUs: 1, Kernel: testKernel, Firmware: layoutOf(t, ovmftest.Image(
		ovmftest.HashArea(0x810000+at, sev.HashTableSize),
		ovmftest.SEVMetadata(ovmf.Section{GPA: 0x810000, Size: 0x1000, Type: ovmf.SectionKernelHashes})))}
	got, err := Digest(in)
	if err != nil {
		t.Fatal(err)
	}
	want := PagesDigest(in.Firmware.Image)
	page, table := make([]byte, 4096), testKernel.Table()
	copy(page[at:], table[:])
	want.Extend(sev.PageNormal, 0x810000, sha512.Sum384(page))
	vmsa, err := RegisterPage(in, 0)
	if err != nil {
		t.Fatal(err)
	}
	want.Extend(sev.PageVMSA, sev.VMSAAddress, sha512.Sum384(vmsa))
	if !bytes.Equal(got, want[:]) {
		t.Errorf("digest %x, want %v", got, want)
	}
}

// TestSVSM follows the layout before IGVM: the module below the variables, which lie
// below the firmware; its own sections; all vCPUs start in it.
func TestSVSM(t *testing.T) {
	const vars, start = 0x4000, 0x123
	module := ovmftest.Image(ovmftest.Size(0x3000),
		ovmftest.Entry(guidSVSMInfo, binary.LittleEndian.AppendUint32(nil, start)...),
		ovmftest.SEVMetadata(ovmf.Section{GPA: 0x9000, Size: 0x2000, Type: ovmf.SectionCPUID}))
	img, err := ovmf.Parse(module)
	if err != nil {
		t.Fatal(err)
	}
	in := Inputs{
		Technology: SNP, Firmware: layoutOf(t, ovmftest.AmdSev()), VCPUs: 2, CPU: SignatureOf(23, 1, 2),
		Features: DefaultFeatures, SVSM: &SVSM{Image: img, VarsSize: vars},
	}
	got, err := Digest(in)
	if err != nil {
		t.Fatal(err)
	}
	want := PagesDigest(in.Firmware.Image)
	gpa := uint64(1<<32 - ovmftest.DefaultSize - vars - len(module))
	for off := 0; off < len(module); off += 4096 {
		want.Extend(sev.PageNormal, gpa+uint64(off), sha512.Sum384(module[off:off+4096]))
	}
	want.Extend(sev.PageCPUID, 0x9000, [48]byte{})
	want.Extend(sev.PageCPUID, 0xa000, [48]byte{})
	vmsa := registers{eip: uint32(gpa) + start, signature: in.CPU, features: 1, svsm: true}.page()
	for range 2 {
		want.Extend(sev.PageVMSA, sev.VMSAAddress, sha512.Sum384(vmsa[:]))
	}
	if !bytes.Equal(got, want[:]) {
		t.Errorf("digest %x, want %v", got, want)
	}
}

// TestLayoutRefused: metadata that is malformed, in firmware and in a module.
func TestLayoutRefused(t *testing.T) {
	for name, o := range map[string]ovmftest.Option{
		"SEV metadata": ovmftest.Entry(ovmf.GUIDSEVMetadata, 1),
		"reset block":  ovmftest.Entry(ovmf.GUIDResetBlock, 1),
		"hash area":    ovmftest.Entry(ovmf.GUIDHashTable, 1),
	} {
		img, err := ovmf.Parse(ovmftest.Image(o))
		if err != nil {
			t.Fatal(err)
		}
		if l, err := LayoutOf(img); !errors.Is(err, ovmf.ErrFormat) {
			t.Errorf("%s: %+v, %v, want ErrFormat", name, l, err)
		}
	}
	img, err := ovmf.Parse(ovmftest.Image(
		ovmftest.Entry(guidSVSMInfo, 0, 0, 0, 0), ovmftest.Entry(ovmf.GUIDSEVMetadata, 1)))
	if err != nil {
		t.Fatal(err)
	}
	in := Inputs{Technology: SNP, Firmware: layoutOf(t, ovmftest.AmdSev()), VCPUs: 1, SVSM: &SVSM{Image: img}}
	if d, err := Digest(in); !errors.Is(err, ovmf.ErrFormat) {
		t.Errorf("a module with malformed metadata: %x, %v, want ErrFormat", d, err)
	}
	in.SVSM.VarsSize = 1
	if p, err := RegisterPage(in, 0); !errors.Is(err, ErrInputs) {
		t.Errorf("a module that does not lie on a page: %d bytes, %v, want ErrInputs", len(p), err)
	}
}

// TestKernelTable: SEV measures the table of hashes behind the image.
func TestKernelTable(t *testing.T) {
	in := Inputs{Technology: SEV, Firmware: layoutOf(t, ovmftest.AmdSev()), Kernel: testKernel}
	table := testKernel.Table()
	want := sha256.Sum256(slices.Concat(in.Firmware.Image, table[:]))
	if got, err := Digest(in); err != nil || !bytes.Equal(got, want[:]) {
		t.Errorf("digest %x, %v, want %x", got, err, want)
	}
}

func TestNames(t *testing.T) {
	for s, want := range map[Signature]string{
		SignatureOf(25, 1, 1): "EPYC-Milan (0xa00f11)", 0x600: "0x600", SignatureOf(26, 0, 0): "EPYC-Turin (0xb00f00)",
	} {
		if got := s.String(); got != want {
			t.Errorf("signature %#x prints as %q, want %q", uint32(s), got, want)
		}
	}
	if a, err := ParseCPU("EPYC-IBPB"); err != nil || a != SignatureOf(23, 1, 2) {
		t.Errorf("EPYC-IBPB is %v, %v, want EPYC", a, err)
	}
	for _, name := range []string{"EPYC-v1", "EPYC-v5", "EPYC-Turin-v2"} {
		if _, err := ParseCPU(name); err != nil {
			t.Errorf("%s: %v, want its signature", name, err)
		}
	}
	if _, err := ParseCPU("host"); err == nil || !strings.Contains(err.Error(), "the host's own") {
		t.Errorf("host: %v, want an error about the host's own signature", err)
	}
	for i, name := range VMMs() {
		if v, err := ParseVMM(name); err != nil || v != VMM(i) || v.String() != name {
			t.Errorf("VMM %s parses to %v, %v, want %d", name, v, err, i)
		}
	}
	for i, name := range Profiles() {
		if p, err := ParseProfile(name); err != nil || p != Profile(i) || p.String() != name {
			t.Errorf("profile %s parses to %v, %v, want %d", name, p, err, i)
		}
	}
	if v, err := ParseVMM("xen"); err == nil {
		t.Errorf("xen parses to %v, want an error", v)
	}
	if p, err := ParseProfile("x"); err == nil {
		t.Errorf("x parses to %v, want an error", p)
	}
}
