package oracle

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/firmware/swtee/attest"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
)

// platform is an emulated one, with its roots.
type platform struct {
	*swtee.Platform
	amdPEM   []byte
	amd      *kds.Roots
	intel    *collateral.Root
	intelX   *x509.Certificate
	at       time.Time
	coll     []byte
	endorsed map[string][]byte
}

func newPlatform(t *testing.T, dir string) *platform {
	t.Helper()
	p, err := swtee.OpenPlatform(dir)
	if err != nil {
		t.Fatal(err)
	}
	e := &platform{Platform: p, at: time.Now().Add(time.Minute), endorsed: map[string][]byte{}}
	amd, err1 := p.AMD()
	intel, err2 := p.Intel()
	files, err3 := p.Collateral(attest.Terms{AsOf: time.Now(), Valid: attest.DefaultValid})
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	e.amdPEM = amd.RootPEM()
	if e.amd, err = kds.ParseRoots(e.amdPEM); err != nil {
		t.Fatal(err)
	}
	if e.intel, err = collateral.ParseRoot(intel.RootPEM()); err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(intel.RootPEM())
	e.intelX = parse(block.Bytes)
	for _, f := range files {
		e.endorsed[f.Name] = f.Data
	}
	e.coll = e.endorsed["tdx-collateral.json"]
	return e
}

func (p *platform) firmware(t *testing.T, fault string) *swtee.Firmware {
	t.Helper()
	if fault == "" {
		return swtee.NewFirmware(p.Platform)
	}
	f, err := swtee.ParseFault(fault)
	if err != nil {
		t.Fatal(err)
	}
	return swtee.NewFirmware(p.Platform, f)
}

// TestEmulatedReports: reports of an emulated platform are accepted by both under its own roots,
// and by neither without them.
func TestEmulatedReports(t *testing.T) {
	p := newPlatform(t, t.TempDir())
	for _, c := range []struct {
		name, fault, ek string
		version         uint32
	}{
		{"version 3", "", "vcek.der", 3},
		{"version 5", "", "vcek.der", 5},
		{"behind", "SNP_GUEST_REQUEST=tcb-behind", "vcek-behind.der", 3},
		{"VLEK", "SNP_GUEST_REQUEST=vlek", "vlek.der", 3},
		{"masked", "SNP_GUEST_REQUEST=masked", "vcek.der", 3},
	} {
		f := p.firmware(t, c.fault)
		f.ReportVersion = c.version
		g := f.NewSNPGuest()
		err := errors.Join(g.Init(1), g.LaunchStart(0x30000),
			g.LaunchUpdate(sev.PageNormal, 0x1000, make([]byte, 4096)), g.LaunchFinish(swtee.SNPFinish{}))
		if err != nil {
			t.Fatal(err)
		}
		raw, err := g.Report([64]byte{1}, 0)
		if err != nil {
			t.Fatal(err)
		}
		ek := p.endorsed[c.ek]
		if err := ours(raw, ek, p.amd, p.at); err != nil {
			t.Errorf("%s: ours: %v", c.name, err)
		}
		if err := theirs(raw, ek, p.amdPEM, attest.Line, p.at); err != nil {
			t.Errorf("%s: go-sev-guest: %v", c.name, err)
		}
		if ours(raw, ek, kds.AMD(), p.at) == nil || theirs(raw, ek, nil, attest.Line, p.at) == nil {
			t.Errorf("%s: it is accepted under AMD's own roots", c.name)
		}
		for _, bit := range []int{0x8, 0x90, 0x2a0} {
			bad := append([]byte(nil), raw...)
			bad[bit] ^= 1
			if ours(bad, ek, p.amd, p.at) == nil || theirs(bad, ek, p.amdPEM, attest.Line, p.at) == nil {
				t.Errorf("%s: accepted with a bit at %#x flipped", c.name, bit)
			}
		}
	}
}

// TestEmulatedQuotes: the same for quotes.
func TestEmulatedQuotes(t *testing.T) {
	p := newPlatform(t, t.TempDir())
	for _, version := range []uint16{4, 5} {
		f := p.firmware(t, "")
		f.QuoteVersion = version
		d := f.NewTD()
		err := errors.Join(
			d.InitVM(swtee.TDParams{Attributes: swtee.TDAttributes, XFAM: swtee.TDXFAM}),
			d.InitMemRegion(0x1000, make([]byte, 4096), true), d.Finalize())
		if err != nil {
			t.Fatal(err)
		}
		raw, err := d.Quote([64]byte{1})
		if err != nil {
			t.Fatal(err)
		}
		for what, text := range map[string][]byte{"with collateral": p.coll, "without": nil} {
			if err := ourQuote(raw, text, p.intel, p.at); err != nil {
				t.Errorf("version %d, %s: ours: %v", version, what, err)
			}
			if err := theirQuote(raw, text, p.intelX, p.at); err != nil {
				t.Errorf("version %d, %s: go-tdx-guest: %v", version, what, err)
			}
		}
		if ourQuote(raw, p.coll, collateral.Intel(), p.at) == nil ||
			theirQuote(raw, p.coll, collateral.Intel().X509, p.at) == nil {
			t.Errorf("version %d: it is accepted under Intel's own root", version)
		}
		bad := append([]byte(nil), raw...)
		bad[200] ^= 1
		if ourQuote(bad, p.coll, p.intel, p.at) == nil || theirQuote(bad, p.coll, p.intelX, p.at) == nil {
			t.Errorf("version %d: accepted with a bit flipped", version)
		}
	}
}
