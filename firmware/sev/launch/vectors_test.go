package launch

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strconv"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/internal/vectors"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/session"
)

// number is a number that may be written as text.
type number string

func (n *number) UnmarshalJSON(b []byte) error {
	*n = number(bytes.Trim(b, `"`))
	return nil
}

func (n number) value(t testing.TB, missing uint64) uint64 {
	t.Helper()
	if n == "" {
		return missing
	}
	v, err := strconv.ParseUint(string(n), 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// vectorInputs are the inputs of the vectors about digests.
type vectorInputs struct {
	Mode, Firmware, Kernel, Initrd, Cmdline string
	VCPUs                                   number
	VCPUType                                string `json:"vcpu_type"`
	VCPUSig                                 number `json:"vcpu_sig"`
	Family, Model, Stepping                 number
	Features                                number `json:"guest_features"`
	VMM                                     string
	Profile                                 string `json:"vmsa_profile"`
	OVMFHash                                string `json:"ovmf_hash"`
	SVSM                                    string
	VarsSize                                number `json:"vars_size"`
	Metadata                                *struct {
		MetadataItems []struct {
			GPA, Size      number
			SectionTypeInt uint32
		}
		ResetEIP number
		OVMFHash string
	}

	Major        uint8  `json:"api_major"`
	Minor        uint8  `json:"api_minor"`
	Build        uint8  `json:"build_id"`
	Policy       string `json:"policy"`
	TIK          string `json:"tik"`
	Nonce        string `json:"nonce"`
	LaunchDigest string `json:"launch_digest"`
}

func parse(t testing.TB, file string) *ovmf.Image {
	t.Helper()
	img, err := ovmf.Parse(vectors.File(t, file))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func snpDigest(t testing.TB, s string) *sev.SNPDigest {
	t.Helper()
	var d sev.SNPDigest
	unhex(t, s, d[:])
	return &d
}

func layoutOf(t testing.TB, image []byte) *Layout {
	t.Helper()
	img, err := ovmf.Parse(image)
	if err != nil {
		t.Fatal(err)
	}
	l, err := LayoutOf(img)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// recorded is the layout of a firmware image by what is recorded of it.
func recorded(t testing.TB, name string) *Layout {
	t.Helper()
	if image, ok := vectors.Made(t, name); ok {
		return layoutOf(t, image)
	}
	f := vectors.Facts(t, name)
	l := layoutOf(t, f.Skeleton(t))
	l.shaOnce.Do(func() { l.sha = f.SHA256.SHA256(t) })
	if f.PagesDigest != "" {
		l.PagesDigest = snpDigest(t, f.PagesDigest)
	}
	return l
}

func (v *vectorInputs) layout(t testing.TB) *Layout {
	t.Helper()
	if m := v.Metadata; m != nil {
		l := &Layout{PagesDigest: snpDigest(t, m.OVMFHash), ResetEIP: uint32(m.ResetEIP.value(t, 0))}
		for _, s := range m.MetadataItems {
			l.Sections = append(
				l.Sections,
				ovmf.Section{
					GPA:  uint32(s.GPA.value(t, 0)),
					Size: uint32(s.Size.value(t, 0)),
					Type: ovmf.SectionType(s.SectionTypeInt),
				},
			)
		}
		return l
	}
	var l *Layout
	if v.SVSM != "" { // needs the sizes and contents of the files
		l = layoutOf(t, vectors.File(t, v.Firmware))
	} else {
		l = recorded(t, v.Firmware)
	}
	if v.OVMFHash != "" {
		l.PagesDigest = snpDigest(t, v.OVMFHash)
	}
	return l
}

func (v *vectorInputs) inputs(t testing.TB) Inputs {
	t.Helper()
	in := Inputs{
		Technology: map[string]Technology{"sev": SEV, "seves": SEVES, "snp": SNP, "snp:svsm": SNP}[v.Mode],
		Firmware:   v.layout(t), VCPUs: int(v.VCPUs.value(t, 1)), CPU: Signature(v.VCPUSig.value(t, 0)),
	}
	if in.Technology == SNP {
		in.Features = v.Features.value(t, DefaultFeatures)
	}
	var err error
	if v.VCPUType != "" {
		if in.CPU, err = ParseCPU(v.VCPUType); err != nil {
			t.Fatal(err)
		}
	}
	if v.Family != "" {
		in.CPU = SignatureOf(uint(v.Family.value(t, 0)), uint(v.Model.value(t, 0)), uint(v.Stepping.value(t, 0)))
	}
	if v.VMM != "" {
		if in.VMM, err = ParseVMM(v.VMM); err != nil {
			t.Fatal(err)
		}
	}
	if v.Profile != "" {
		if in.Profile, err = ParseProfile(v.Profile); err != nil {
			t.Fatal(err)
		}
	}
	if v.Kernel != "" {
		h, err := sev.HashKernel(nil, nil, v.Cmdline)
		if err != nil {
			t.Fatal(err)
		}
		h.Kernel = vectors.SHA256(t, v.Kernel)
		if v.Initrd != "" {
			h.Initrd = vectors.SHA256(t, v.Initrd)
		}
		in.Kernel = &h
	}
	if v.SVSM != "" {
		in.SVSM = &SVSM{Image: parse(t, v.SVSM), VarsSize: int(v.VarsSize.value(t, 0))}
		in.Features = DefaultFeatures // as the peer does, whatever it is told
	}
	return in
}

func TestLaunchDigestVectors(t *testing.T) {
	vectors.Each(t, "launch-digest", func(t *testing.T, v vectors.Vector) {
		var want struct{ Hex string }
		v.Want(t, &want)
		var in vectorInputs
		v.In(t, &in)
		got, err := Digest(in.inputs(t))
		if v.ExpectError {
			if err == nil {
				t.Fatalf("digest %x, want an error", got)
			}
			t.Log(err)
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if hex.EncodeToString(got) != want.Hex {
			t.Errorf("digest %x, want %s (%s)", got, want.Hex, v.Source)
		}
	})
}

func TestPagesDigestVectors(t *testing.T) {
	vectors.Each(t, "snp-ovmf-hash", func(t *testing.T, v vectors.Vector) {
		var in vectorInputs
		v.In(t, &in)
		var want struct{ Hex string }
		v.Want(t, &want)
		if image, ok := vectors.Made(t, in.Firmware); ok {
			if got := PagesDigest(image); got.String() != want.Hex {
				t.Errorf("digest %v, want %s", got, want.Hex)
			}
		} else if got := vectors.Facts(t, in.Firmware).PagesDigest; got != want.Hex {
			t.Errorf("recorded is the digest %s, want %s", got, want.Hex)
		}
	})
}

func TestRegisterPageVectors(t *testing.T) {
	vectors.Each(t, "vmsa-page", func(t *testing.T, v vectors.Vector) {
		var in vectorInputs
		v.In(t, &in)
		var want struct {
			Boot  string      `json:"bsp_sha256"`
			AP    string      `json:"ap_sha256"`
			Words [][2]string `json:"bsp_nonzero_words"`
		}
		v.Want(t, &want)
		for vcpu, sum := range []string{want.Boot, want.AP} {
			page, err := RegisterPage(in.inputs(t), vcpu)
			if err != nil {
				t.Fatal(err)
			}
			if got := sha256.Sum256(page); hex.EncodeToString(got[:]) != sum {
				t.Errorf("page of vCPU %d has SHA-256 %x, want %s", vcpu, got, sum)
			}
		}
		page, _ := RegisterPage(in.inputs(t), 0)
		for _, w := range want.Words {
			off, _ := strconv.ParseInt(w[0], 0, 32)
			if got := hex.EncodeToString(page[off : off+8]); got != w[1] {
				t.Errorf("at %s: %s, want %s", w[0], got, w[1])
			}
		}
	})
}

func TestSignatureVectors(t *testing.T) {
	vectors.Each(t, "cpu-sig", func(t *testing.T, v vectors.Vector) {
		var in vectorInputs
		v.In(t, &in)
		var want struct{ Hex number }
		v.Want(t, &want)
		got := SignatureOf(uint(in.Family.value(t, 0)), uint(in.Model.value(t, 0)), uint(in.Stepping.value(t, 0)))
		if uint64(got) != want.Hex.value(t, 0) {
			t.Errorf("%#x, want %s", uint32(got), want.Hex)
		}
	})
	vectors.Each(t, "cpu-sig-table", func(t *testing.T, v vectors.Vector) {
		var want struct{ Table map[string]number }
		v.Want(t, &want)
		for name, sig := range want.Table {
			if got, err := ParseCPU(name); err != nil || uint64(got) != sig.value(t, 0) {
				t.Errorf("%s: %v, %v, want %s", name, got, err, sig)
			}
		}
	})
	for _, bad := range []string{
		"", "host", "EPYC-v6", "EPYC-v0", "EPYC-Turin-v3", "EPYC-Milan-vx", "Skylake-Server-v1",
	} {
		if s, err := ParseCPU(bad); err == nil {
			t.Errorf("%q is %v", bad, s)
		}
	}
}

func TestLaunchMeasureVectors(t *testing.T) {
	vectors.Each(t, "launch-measure-hmac", func(t *testing.T, v vectors.Vector) {
		var want struct {
			LaunchMeasure string `json:"launch_measure_base64"`
			LaunchDigest  string `json:"launch_digest_hex"`
		}
		v.Want(t, &want)
		var in vectorInputs
		v.In(t, &in)
		var digest [32]byte
		switch {
		case in.LaunchDigest != "":
			unhex(t, in.LaunchDigest, digest[:])
		default:
			inputs := in.inputs(t)
			inputs.Profile = Legacy // as virt-qemu-sev-validate and sevctl assume
			d, err := Digest(inputs)
			if err != nil {
				t.Fatal(err)
			}
			digest = [32]byte(d)
			if want.LaunchDigest != "" && hex.EncodeToString(d) != want.LaunchDigest {
				t.Errorf("digest %x, want %s", d, want.LaunchDigest)
			}
		}
		var k session.Keys
		unhex(t, in.TIK, k.TIK[:])
		var m sev.Measurement
		unhex(t, in.Nonce, m.Nonce[:])
		policy, err := strconv.ParseUint(in.Policy, 0, 32)
		if err != nil {
			t.Fatal(err)
		}
		build := sev.Build{Major: in.Major, Minor: in.Minor, Build: in.Build}
		m.MAC = k.LaunchMAC(build, sev.Policy(policy), digest, m.Nonce)
		if got := base64.StdEncoding.EncodeToString(m.Bytes()); got != want.LaunchMeasure {
			t.Errorf("measurement %s, want %s", got, want.LaunchMeasure)
		}
		if !k.Verifies(m, build, sev.Policy(policy), digest) {
			t.Error("the right digest does not verify")
		}
		digest[0] ^= 1
		if k.Verifies(m, build, sev.Policy(policy), digest) {
			t.Error("another digest verifies")
		}
	})
}

func unhex(t testing.TB, s string, to []byte) {
	t.Helper()
	if n, err := hex.Decode(to, []byte(s)); err != nil || n != len(to) {
		t.Fatalf("%q is not %d bytes of hex", s, len(to))
	}
}

// TestMeasurementGoesOn: copies of a measurement go on alone, and give what one
// that was begun anew gives.
func TestMeasurementGoesOn(t *testing.T) {
	for _, technology := range []Technology{SEVES, SNP} {
		in := Inputs{
			Technology: technology,
			Firmware: &Layout{
				Image:    bytes.Repeat([]byte{1, 2, 3, 4}, 2048),
				Sections: []ovmf.Section{{GPA: 0x1000, Size: 0x2000, Type: ovmf.SectionMemory}},
				ResetEIP: 0x80b004,
			},
			VCPUs: 3,
			CPU:   SignatureOf(25, 1, 1),
		}
		base, err := Begin(in)
		if err != nil {
			t.Fatal(err)
		}
		other := in
		other.CPU, other.VCPUs = SignatureOf(25, 17, 0), 5
		for _, c := range []Inputs{in, other, in} {
			m := base.With(c)
			if err := m.AddVCPUs(c.VCPUs); err != nil {
				t.Fatal(err)
			}
			want, err := Digest(c)
			if err != nil || !slices.Equal(m.Sum(), want) {
				t.Errorf("%s with %v: %x, want %x (%v)", technology, c.CPU, m.Sum(), want, err)
			}
		}
	}
}

var _ json.Unmarshaler = (*number)(nil)

// TestSVSMRegisters is vector vmsa-0313 without the module's binary, of which it
// needs only where it starts.
func TestSVSMRegisters(t *testing.T) {
	cpu, err := ParseCPU("EPYC-v4")
	if err != nil {
		t.Fatal(err)
	}
	r := registers{eip: 0xffaea000, signature: cpu, features: DefaultFeatures, svsm: true}
	sum := sha256.Sum256(r.page()[:])
	if got := hex.EncodeToString(sum[:]); got != "b1187625be0760978a6911cbeb452afbc4da5e11715e4f5bc8ffdc36ea06cac9" {
		t.Errorf("page has SHA-256 %s", got)
	}
}
