package report_test

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence/evidencetest"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
)

var (
	le   = binary.LittleEndian
	asOf = evidencetest.AsOf()
)

// bench is what a test judges with.
type bench struct {
	amd    *evidencetest.AMD
	ek     *evidencetest.Endorsed
	roots  *kds.Roots
	crl    []byte
	at     time.Time
	policy report.Policy
	change func(b []byte)
}

func newBench(t testing.TB, l kds.Line) *bench {
	t.Helper()
	amd := evidencetest.NewAMD(t, l, 0)
	return &bench{
		amd: amd, ek: amd.VCEK(t), roots: evidencetest.Roots(t, amd), at: asOf,
		policy: report.Policy{AllowSMT: true}, change: func([]byte) {},
	}
}

// judge gives the code of the refusal; "" for none.
func (b *bench) judge(t testing.TB) refusal.Reason {
	t.Helper()
	err := b.verify(t, b.ek.Report(t, b.change))
	if err == nil {
		return ""
	}
	e := refusal.Of(err)
	if e == nil {
		t.Fatalf("%v is not a refusal", err)
	}
	if e.Text == "" || e.Fix == "" {
		t.Errorf("%s has no words", e.Reason)
	}
	return e.Reason
}

func (b *bench) verify(t testing.TB, raw []byte) error {
	t.Helper()
	r, err := report.Parse(raw)
	if err != nil {
		return err
	}
	e := &report.Evidence{Report: r, Roots: b.roots}
	if e.EK, err = kds.ParseCertificate(b.ek.Cert.Raw); err != nil {
		return err
	}
	if b.crl != nil {
		crl, err := kds.ParseCRL(b.crl)
		if err != nil {
			return err
		}
		e.CRLs = append(e.CRLs, crl)
	}
	return e.Verify(b.at, &b.policy)
}

// TestEveryReason: each check refuses what it is for, in every line of processors, and a report
// without a fault is accepted.
func TestEveryReason(t *testing.T) {
	put32 := func(off int, v uint32) func([]byte) { return func(b []byte) { le.PutUint32(b[off:], v) } }
	put64 := func(off int, v uint64) func([]byte) { return func(b []byte) { le.PutUint64(b[off:], v) } }
	fill := func(off, n int, v byte) func([]byte) {
		return func(b []byte) { copy(b[off:], bytes.Repeat([]byte{v}, n)) }
	}
	none := func([]byte) {}
	vmpl := uint32(0)
	cases := map[string]struct {
		change func([]byte)
		set    func(t *testing.T, b *bench)
		want   refusal.Reason
	}{
		"nothing wrong": {none, nil, ""},
		"version 1":     {put32(0, 1), nil, refusal.ReportVersion},
		"version 6":     {put32(0, 6), nil, refusal.ReportVersion},
		"version 2": {
			func(b []byte) { le.PutUint32(b, 2); copy(b[0x188:], []byte{0, 0, 0}) },
			nil,
			"",
		},
		"version 2 with a processor": {put32(0, 2), nil, refusal.ReportReserved},
		"version 4":                  {put32(0, 4), nil, ""},
		"version 4 with mitigations": {
			func(b []byte) { le.PutUint32(b, 4); b[0x1f8] = 1 },
			nil,
			refusal.ReportReserved,
		},
		"version 5 with mitigations": {func(b []byte) { le.PutUint32(b, 5); b[0x1f8] = 1 }, nil, ""},
		"policy without bit 17":      {put64(8, 0x10000), nil, refusal.ReportReserved},
		"policy bit 26":              {put64(8, 0x4030000), nil, refusal.ReportReserved},
		"reserved signer bits":       {put32(0x48, 0x20), nil, refusal.ReportReserved},
		"algorithm":                  {put32(0x34, 2), nil, refusal.SignatureAlgorithm},
		"no signing key":             {put32(0x48, 7<<2), nil, refusal.Signer},
		"kind of key":                {put32(0x48, 1<<2), nil, refusal.KeyType},
		"unknown processor": {
			func(b []byte) { copy(b[0x188:], []byte{0x1a, 0x50}) },
			nil,
			refusal.ProductUnknown,
		},
		"another line": {func(b []byte) {
			to := []byte{0x19, 0x01}
			if b[0x189] == 0x01 {
				to = []byte{0x1a, 0x02}
			}
			copy(b[0x188:], to)
		}, nil, refusal.ProductMismatch},
		"reported TCB":           {func(b []byte) { b[0x187]-- }, nil, refusal.TCBMismatch},
		"another chip":           {func(b []byte) { b[0x1a0]++ }, nil, refusal.ChipMismatch},
		"chip with a tail":       {func(b []byte) { b[0x1df] ^= 1 }, nil, refusal.ChipMismatch},
		"committed above":        {func(b []byte) { b[0x1e7]++ }, nil, refusal.TCBInconsistent},
		"debug":                  {put64(8, 0xb0000), nil, refusal.Debug},
		"migration agent":        {put64(8, 0x70000), nil, refusal.MigrationAgent},
		"provisional TCB":        {func(b []byte) { b[0x1e7]-- }, nil, refusal.Provisional},
		"provisional version":    {func(b []byte) { b[0x1ed]-- }, nil, refusal.Provisional},
		"asked for by the host":  {put32(0x30, 0xffffffff), nil, refusal.VMPL},
		"privilege level 4":      {put32(0x30, 4), nil, refusal.VMPL},
		"launched under a newer": {func(b []byte) { b[0x1f7]++ }, nil, ""},
		"SMT":                    {none, func(_ *testing.T, b *bench) { b.policy.AllowSMT = false }, refusal.SMT},
		"single socket": {
			none,
			func(_ *testing.T, b *bench) { b.policy.RequireSingleSocket = true },
			refusal.SingleSocket,
		},
		"guest policy": {put64(8, 0x230000), func(_ *testing.T, b *bench) {
			p := sev.SNPPolicyDefault
			b.policy.Guest = &p
		}, refusal.GuestPolicy},
		"alias check": {
			fill(0x40, 1, 0),
			func(_ *testing.T, b *bench) { b.policy.RequireAliasCheck = true },
			refusal.AliasCheck,
		},
		"TCB below": {none, func(_ *testing.T, b *bench) {
			b.policy.MinTCB = map[kds.Line]map[string]uint8{b.amd.Line: {"snp": 23}}
		}, refusal.TCBBelowMinimum},
		"minimum of another line": {none, func(_ *testing.T, b *bench) {
			b.policy.MinTCB = map[kds.Line]map[string]uint8{"another": {"snp": 1}}
		}, refusal.TCBBelowMinimum},
		"firmware below": {none, func(_ *testing.T, b *bench) {
			b.policy.MinFirmware = &sev.Build{Major: 1, Minor: 56}
		}, refusal.FirmwareVersion},
		"guest SVN": {
			none,
			func(_ *testing.T, b *bench) { b.policy.MinGuestSVN = 8 },
			refusal.GuestSVN,
		},
		"launch mitigation": {
			put32(0, 5),
			func(_ *testing.T, b *bench) { b.policy.LaunchMit = 2 },
			refusal.Mitigation,
		},
		"current mitigation": {
			put32(0, 5),
			func(_ *testing.T, b *bench) { b.policy.CurrentMit = 2 },
			refusal.Mitigation,
		},
		"another level": {
			put32(0x30, 2),
			func(_ *testing.T, b *bench) { b.policy.VMPL = &vmpl },
			refusal.VMPL,
		},
		"measurement": {
			none,
			func(_ *testing.T, b *bench) { b.policy.Measurements = [][]byte{make([]byte, 48)} },
			refusal.Measurement,
		},
		"no measurement at all": {
			none,
			func(_ *testing.T, b *bench) { b.policy.Measurements = [][]byte{} },
			refusal.Measurement,
		},
		"report data": {
			none,
			func(_ *testing.T, b *bench) { b.policy.ReportData = make([]byte, 64) },
			refusal.ReportData,
		},
		"host data": {
			none,
			func(_ *testing.T, b *bench) { b.policy.HostData = make([]byte, 31) },
			refusal.HostData,
		},
		"ID key": {
			none,
			func(_ *testing.T, b *bench) { b.policy.IDKeyDigest = fullOf(48, 1) },
			refusal.IDKey,
		},
		"author key": {
			none,
			func(_ *testing.T, b *bench) { b.policy.AuthorKey = fullOf(48, 1) },
			refusal.AuthorKey,
		},
		"author key without its bit": {
			fill(0x110, 48, 1),
			func(_ *testing.T, b *bench) { b.policy.AuthorKey = fullOf(48, 1) },
			refusal.AuthorKey,
		},
		"family": {
			none,
			func(_ *testing.T, b *bench) { b.policy.FamilyID = fullOf(16, 1) },
			refusal.FamilyID,
		},
		"image": {
			none,
			func(_ *testing.T, b *bench) { b.policy.ImageID = fullOf(16, 1) },
			refusal.ImageID,
		},
		"chip not listed": {
			none,
			func(_ *testing.T, b *bench) { b.policy.Chips = [][]byte{fullOf(64, 1)} },
			refusal.ChipNotAllowed,
		},
		"empty list of chips": {
			none,
			func(_ *testing.T, b *bench) { b.policy.Chips = [][]byte{} },
			refusal.ChipNotAllowed,
		},
		"masked chip": {fill(0x1a0, 64, 0), nil, ""},
		"masked chip, listed": {
			fill(0x1a0, 64, 0),
			func(_ *testing.T, b *bench) { b.policy.Chips = [][]byte{b.ek.HWID} },
			refusal.ChipNotAllowed,
		},
		"chip listed": {none, func(_ *testing.T, b *bench) { b.policy.Chips = [][]byte{b.ek.HWID} }, ""},
		"VLEK":        {none, func(t *testing.T, b *bench) { b.ek = b.amd.VLEK(t) }, refusal.VLEK},
		"VLEK allowed": {
			none,
			func(t *testing.T, b *bench) { b.ek, b.policy.AllowVLEK = b.amd.VLEK(t), true },
			"",
		},
		"VLEK and a list of chips": {none, func(t *testing.T, b *bench) {
			b.ek, b.policy.AllowVLEK, b.policy.Chips = b.amd.VLEK(t), true, [][]byte{b.ek.HWID}
		}, refusal.ChipNotAllowed},
		"root with the same names": {none, func(t *testing.T, b *bench) {
			b.roots = evidencetest.Roots(t, evidencetest.NewAMD(t, b.amd.Line, 1))
		}, refusal.Chain},
		"no root of the line": {none, func(t *testing.T, b *bench) {
			other := kds.Milan
			if b.amd.Line == kds.Milan {
				other = kds.Genoa
			}
			b.roots = evidencetest.Roots(t, evidencetest.NewAMD(t, other, 0))
		}, refusal.Chain},
		"AMD's own roots": {none, func(_ *testing.T, b *bench) { b.roots = kds.AMD() }, refusal.Chain},
		"expired": {
			none,
			func(_ *testing.T, b *bench) { b.at = evidencetest.End().Add(time.Second) },
			refusal.CertExpired,
		},
		"last second":  {none, func(_ *testing.T, b *bench) { b.at = evidencetest.End() }, ""},
		"first second": {none, func(_ *testing.T, b *bench) { b.at = evidencetest.Begin() }, ""},
		"not yet valid": {
			none,
			func(_ *testing.T, b *bench) { b.at = evidencetest.Begin().Add(-time.Second) },
			refusal.CertExpired,
		},
		"list demanded": {none, func(_ *testing.T, b *bench) { b.policy.RequireCRL = true }, refusal.CRLMissing},
		"list": {
			none,
			func(t *testing.T, b *bench) { b.crl, b.policy.RequireCRL = b.amd.CRL(t), true },
			"",
		},
		"list that revokes, too old": {none, func(t *testing.T, b *bench) {
			b.crl = b.amd.CRL(t, evidencetest.SerialASK)
			b.at = b.at.AddDate(0, 3, 0)
		}, refusal.CRLExpired},
		"serial 0 listed": {none, func(t *testing.T, b *bench) { b.crl = b.amd.CRL(t, 0) }, ""},
		"ASK revoked": {
			none,
			func(t *testing.T, b *bench) { b.crl = b.amd.CRL(t, evidencetest.SerialASK) },
			refusal.Revoked,
		},
		"ARK revoked": {
			none,
			func(t *testing.T, b *bench) { b.crl = b.amd.CRL(t, evidencetest.SerialARK) },
			refusal.Revoked,
		},
		"ASVK revoked, VCEK": {
			none,
			func(t *testing.T, b *bench) { b.crl = b.amd.CRL(t, evidencetest.SerialASVK) },
			"",
		},
		"ASVK revoked, VLEK": {none, func(t *testing.T, b *bench) {
			b.ek, b.policy.AllowVLEK, b.crl = b.amd.VLEK(t), true, b.amd.CRL(t, evidencetest.SerialASVK)
		}, refusal.Revoked},
		"list by the ASK": {none, func(t *testing.T, b *bench) { b.crl = b.amd.CRLByASK(t) }, refusal.CRLSignature},
		"list is noise":   {none, func(_ *testing.T, b *bench) { b.crl = []byte("no list") }, refusal.CRLMalformed},
		"list too old": {none, func(t *testing.T, b *bench) {
			b.crl = b.amd.CRLBetween(t, asOf.Add(-2*time.Hour), asOf.Add(-time.Second))
		}, refusal.CRLExpired},
		"list of this second": {
			none,
			func(t *testing.T, b *bench) { b.crl = b.amd.CRLBetween(t, asOf.Add(-time.Hour), asOf) },
			"",
		},
		"list from the future": {none, func(t *testing.T, b *bench) {
			b.crl = b.amd.CRLBetween(t, asOf.Add(time.Second), asOf.Add(time.Hour))
		}, refusal.CRLExpired},
		"old list tolerated": {none, func(t *testing.T, b *bench) {
			b.crl = b.amd.CRLBetween(t, asOf.Add(-2*time.Hour), asOf.Add(-time.Minute))
			b.policy.CRLStale = time.Minute
		}, ""},
		"old list beyond what is tolerated": {none, func(t *testing.T, b *bench) {
			b.crl = b.amd.CRLBetween(t, asOf.Add(-2*time.Hour), asOf.Add(-time.Minute))
			b.policy.CRLStale = time.Minute - time.Second
		}, refusal.CRLExpired},
	}
	for _, l := range kds.Lines() {
		for name, c := range cases {
			t.Run(string(l)+"/"+name, func(t *testing.T) {
				b := newBench(t, l)
				b.change = c.change
				if c.set != nil {
					c.set(t, b)
				}
				if got := b.judge(t); got != c.want {
					t.Errorf("reason %q, want %q", got, c.want)
				}
			})
		}
	}
}

func fullOf(n int, v byte) []byte { return bytes.Repeat([]byte{v}, n) }

// TestAMDRoots: what is compiled in is what AMD publishes.
func TestAMDRoots(t *testing.T) {
	for _, l := range kds.Lines() {
		if !kds.AMD().Has(l) {
			t.Errorf("no root of %s", l)
		}
	}
	if kds.AMD().Emulated {
		t.Error("AMD's roots are called emulated")
	}
}
