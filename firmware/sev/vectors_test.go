package sev_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"io"
	"strconv"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/internal/vectors"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/session"
)

type inputs struct {
	Mode     string `json:"mode"`
	Firmware string `json:"firmware"`
	Kernel   string `json:"kernel"`
	Initrd   string `json:"initrd"`
	Cmdline  string `json:"cmdline"`

	Major        uint8  `json:"api_major"`
	Minor        uint8  `json:"api_minor"`
	Build        uint8  `json:"build_id"`
	Policy       string `json:"policy"`
	TIK          string `json:"tik"`
	Nonce        string `json:"nonce"`
	LaunchDigest string `json:"launch_digest"`
}

func (in inputs) kernelHashes(t *testing.T) *sev.KernelHashes {
	if in.Kernel == "" {
		return nil
	}
	var initrd io.Reader
	if in.Initrd != "" {
		initrd = bytes.NewReader(vectors.File(t, in.Initrd))
	}
	h, err := sev.HashKernel(bytes.NewReader(vectors.File(t, in.Kernel)), initrd, in.Cmdline)
	if err != nil {
		t.Fatal(err)
	}
	return &h
}

func (in inputs) digest(t *testing.T) ([32]byte, error) {
	img, err := ovmf.Parse(vectors.File(t, in.Firmware))
	if err != nil {
		t.Fatal(err)
	}
	area, _, err := img.HashArea()
	if err != nil {
		t.Fatal(err)
	}
	return sev.LaunchDigest(sev.LaunchInputs{Firmware: img.Bytes, Kernel: in.kernelHashes(t), HashArea: sev.HashArea(area)})
}

func TestLaunchDigestVectors(t *testing.T) {
	vectors.Each(t, "launch-digest", func(t *testing.T, v vectors.Vector) {
		var want struct{ Hex string }
		v.Want(t, &want)
		var in inputs
		v.In(t, &in)
		got, err := in.digest(t)
		if v.ExpectError {
			if err == nil {
				t.Fatalf("digest %x, want an error", got)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if hex.EncodeToString(got[:]) != want.Hex {
			t.Errorf("digest %x, want %s (%s)", got, want.Hex, v.Source)
		}
	})
}

func TestKernelHashTableVectors(t *testing.T) {
	vectors.Each(t, "kernel-hashes-table", func(t *testing.T, v vectors.Vector) {
		var want struct{ Hex string }
		v.Want(t, &want)
		var in inputs
		v.In(t, &in)
		table := in.kernelHashes(t).Table()
		if got := hex.EncodeToString(table[:]); got != want.Hex {
			t.Errorf("table %s, want %s", got, want.Hex)
		}
	})
}

func TestLaunchMeasureVectors(t *testing.T) {
	vectors.Each(t, "launch-measure-hmac", func(t *testing.T, v vectors.Vector) {
		var want struct {
			LaunchMeasure string `json:"launch_measure_base64"`
			LaunchDigest  string `json:"launch_digest_hex"`
		}
		v.Want(t, &want)
		var in inputs
		v.In(t, &in)
		var digest [32]byte
		switch {
		case in.LaunchDigest != "":
			unhex(t, in.LaunchDigest, digest[:])
		case in.Mode == "sev":
			d, err := in.digest(t)
			if err != nil {
				t.Fatal(err)
			}
			digest = d
		case want.LaunchDigest != "":
			unhex(t, want.LaunchDigest, digest[:])
		default:
			t.Skip("needs a SEV-ES launch digest")
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

func unhex(t *testing.T, s string, to []byte) {
	t.Helper()
	if n, err := hex.Decode(to, []byte(s)); err != nil || n != len(to) {
		t.Fatalf("%q is not %d bytes of hex", s, len(to))
	}
}

func TestPolicyRoundTrip(t *testing.T) {
	for _, p := range []sev.Policy{0, 1, 3, 0x37, 0x0133_0003, 0x3f} {
		s := "0"
		if words := p.Words(); len(words) > 0 {
			s = strings.Join(words, ",")
		}
		if got, err := sev.ParsePolicy(s); err != nil || got != p {
			t.Errorf("%s parses to %v, %v, want %v", s, got, err, p)
		}
	}
	for _, bad := range []string{"", "0x40", "nodebug", "api=1", "no-debug,,es", "0x100000000", "api=1.51.2", "api=1.5x", "api=256.1"} {
		if p, err := sev.ParsePolicy(bad); err == nil {
			t.Errorf("%q parses to %v", bad, p)
		}
	}
}

func TestPolicyAdmits(t *testing.T) {
	p, err := sev.ParsePolicy("no-debug,api=1.51")
	if err != nil {
		t.Fatal(err)
	}
	for b, want := range map[sev.Build]bool{
		{Major: 1, Minor: 50}: false, {Major: 1, Minor: 51}: true, {Major: 2}: true, {Major: 0, Minor: 99}: false,
	} {
		if got := p.Admits(b); got != want {
			t.Errorf("%v on %v: %t, want %t", p, b, got, want)
		}
	}
}

func TestStatusTable(t *testing.T) {
	seen := map[string]bool{}
	for i, s := range sev.Statuses() {
		if int(s) != i {
			t.Errorf("row %d has code %d", i, s)
		}
		if seen[s.Name()] || s.Name() == "" || s != 0 && s.Text() == "" {
			t.Errorf("code %d: name %q or text %q is missing or twice", s, s.Name(), s.Text())
		}
		seen[s.Name()] = true
	}
	if sev.Status(0x7777).Text() != "unknown error" {
		t.Error("an unknown code must say so")
	}
}

func TestGUIDRoundTrip(t *testing.T) {
	const text = "1e74f542-71dd-4d66-963e-ef4287ff173b"
	if got := sev.MustGUID(text).String(); got != text {
		t.Errorf("%s prints as %s", text, got)
	}
	for _, bad := range []string{"", "x", text + "0", text[:35], "1e74f542_71dd_4d66_963e_ef4287ff173b", " 1e74f54-71dd-4d66-963e-ef4287ff173b", "1e74f54-271dd-4d66-963e-ef4287ff173b"} {
		if _, err := sev.ParseGUID(bad); err == nil {
			t.Errorf("%q is taken for a GUID", bad)
		}
	}
}
