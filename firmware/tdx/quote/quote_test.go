package quote_test

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence/evidencetest"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/tdx/attr"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
	"github.com/vmlatch/vmlatch/firmware/tdx/quote"
)

var le = binary.LittleEndian

// bench is what a test judges with.
type bench struct {
	intel      *evidencetest.Intel
	platform   *evidencetest.Platform
	root       *collateral.Root
	collateral []byte // nil for none
	at         time.Time
	policy     quote.Policy
	change     []func(*evidencetest.QuoteParts)
}

func newBench(t testing.TB, several bool) *bench {
	t.Helper()
	intel := evidencetest.NewIntel(t)
	return &bench{
		intel: intel, platform: intel.Platform(t, several), root: intel.Root(t), at: evidencetest.AsOf(),
		collateral: intel.Collateral(t, authority(several)),
	}
}

// authority lets collateral have the list of the platform's authority.
func authority(several bool) func(*evidencetest.Parts) {
	return func(p *evidencetest.Parts) { p.Processor = !several }
}

func (b *bench) verify(t testing.TB, raw []byte) (*quote.Verdict, error) {
	t.Helper()
	q, err := quote.Parse(raw)
	if err != nil {
		return nil, err
	}
	e := &quote.Evidence{Quote: q, Root: b.root}
	if b.collateral != nil {
		if e.Collateral, err = collateral.Parse(b.collateral); err != nil {
			return nil, err
		}
	}
	return e.Verify(b.at, &b.policy)
}

func (b *bench) judge(t testing.TB) (*quote.Verdict, refusal.Reason) {
	t.Helper()
	v, err := b.verify(t, b.platform.Quote(t, b.change...))
	if err == nil {
		return v, ""
	}
	e := refusal.Of(err)
	if e == nil {
		t.Fatalf("%v is not a refusal", err)
	}
	if e.Text == "" || e.Fix == "" {
		t.Errorf("%s has no words", e.Reason)
	}
	return v, e.Reason
}

// TestEveryReason: each check refuses what it is for, and quotes without a fault are accepted.
func TestEveryReason(t *testing.T) {
	type parts = evidencetest.QuoteParts
	type sources = evidencetest.Parts
	made := func(f func(*parts)) func(*testing.T, *bench) {
		return func(_ *testing.T, b *bench) { b.change = append(b.change, f) }
	}
	with := func(f func(*sources)) func(*testing.T, *bench) {
		return func(t *testing.T, b *bench) { b.collateral = b.intel.Collateral(t, authority(true), f) }
	}
	demand := func(f func(*quote.Policy)) func(*testing.T, *bench) {
		return func(_ *testing.T, b *bench) { f(&b.policy) }
	}
	both := func(list ...func(*testing.T, *bench)) func(*testing.T, *bench) {
		return func(t *testing.T, b *bench) {
			for _, f := range list {
				f(t, b)
			}
		}
	}
	attributes := func(v uint64) func(*testing.T, *bench) {
		return made(func(q *parts) { le.PutUint64(q.Body[evidencetest.OffAttributes:], v) })
	}
	version5 := made(func(q *parts) { q.Version, q.Is15 = 5, true })
	const ve = 1 << 28
	oldModule := made(func(q *parts) { q.Body[0] = 4 })
	other := bytes.Repeat([]byte{1}, 48)
	for name, c := range map[string]struct {
		set  func(*testing.T, *bench)
		want refusal.Reason
	}{
		"nothing wrong":      {nil, ""},
		"version 5, TDX 1.0": {made(func(q *parts) { q.Version = 5 }), ""},
		"version 5, TDX 1.5": {version5, ""},
		"version 3":          {made(func(q *parts) { q.Version = 3 }), refusal.QuoteVersion},
		"P-384":              {made(func(q *parts) { q.Header[2] = 3 }), refusal.AttestationKeyType},
		"SGX":                {made(func(q *parts) { q.Header[4] = 0 }), refusal.TEEType},
		"vendor":             {made(func(q *parts) { q.Header[12] ^= 1 }), refusal.QEVendor},
		"zeros behind":       {made(func(q *parts) { q.Behind = make([]byte, 3065) }), ""},
		"noise behind":       {made(func(q *parts) { q.Behind = []byte("noise") }), ""},
		"no collateral":      {func(_ *testing.T, b *bench) { b.collateral = nil }, refusal.CollateralMissing},
		"none demanded": {
			func(_ *testing.T, b *bench) { b.collateral, b.policy.NoCollateral = nil, true },
			"",
		},
		"module, none demanded": {
			both(func(_ *testing.T, b *bench) {
				b.collateral, b.policy.NoCollateral = nil, true
			}, made(func(q *parts) {
				q.Body[evidencetest.OffSignerSEAM] = 1
			})),
			refusal.TDXModule,
		},
		"another enclave, none demanded": {
			both(func(_ *testing.T, b *bench) {
				b.collateral, b.policy.NoCollateral = nil, true
			}, made(func(q *parts) {
				q.QEReport[128] ^= 1
			})),
			refusal.QEIdentity,
		},
		"enclave in debug mode, none demanded": {
			both(func(_ *testing.T, b *bench) {
				b.collateral, b.policy.NoCollateral = nil, true
			}, made(func(q *parts) {
				q.QEReport[48] |= 2
			})),
			refusal.QEIdentity,
		},
		"another root": {
			func(t *testing.T, b *bench) { b.root = evidencetest.NewIntel(t).Root(t) },
			refusal.Chain,
		},
		"Intel's own root": {func(_ *testing.T, b *bench) { b.root = collateral.Intel() }, refusal.Chain},
		"no PCK certificate": {func(t *testing.T, b *bench) {
			b.platform = b.intel.Platform(t, true, func(c *x509.Certificate) { c.Subject.CommonName = "x" })
		}, refusal.Chain},
		"PCK without extension": {func(t *testing.T, b *bench) {
			b.platform = b.intel.Platform(t, true, func(c *x509.Certificate) { c.ExtraExtensions = nil })
		}, refusal.PCKExtension},
		"NUL behind the chain": {func(_ *testing.T, b *bench) { b.platform.ChainNote = []byte{0} }, ""},
		"expired": {
			func(_ *testing.T, b *bench) { b.at = evidencetest.End().Add(time.Second) },
			refusal.CertExpired,
		},
		"not yet valid": {
			func(_ *testing.T, b *bench) { b.at = evidencetest.Begin().Add(-time.Second) },
			refusal.CertExpired,
		},
		"lists expired": {
			func(_ *testing.T, b *bench) { b.at = evidencetest.AsOf().AddDate(0, 1, 0).Add(time.Second) },
			refusal.CRLExpired,
		},
		"lists of the future": {
			func(_ *testing.T, b *bench) { b.at = evidencetest.AsOf().AddDate(0, -1, 0).Add(-time.Second) },
			refusal.CRLExpired,
		},
		"collateral expired": {
			func(_ *testing.T, b *bench) { b.at = evidencetest.AsOf().AddDate(0, 0, 20).Add(time.Second) },
			refusal.TCBInfoExpired,
		},
		"last second": {
			func(_ *testing.T, b *bench) { b.at = evidencetest.AsOf().AddDate(0, 0, 20) },
			"",
		},
		"collateral of tomorrow": {
			func(_ *testing.T, b *bench) { b.at = evidencetest.AsOf().AddDate(0, 0, -10).Add(-time.Second) },
			refusal.TCBInfoExpired,
		},
		"expired, tolerated": {func(_ *testing.T, b *bench) {
			b.at, b.policy.CollateralStale = evidencetest.AsOf().AddDate(0, 0, 20).Add(time.Second), time.Second
		}, ""},
		"identity expired": {
			with(func(p *sources) {
				p.QE["nextUpdate"] = evidencetest.AsOf().Add(-time.Second).Format(time.RFC3339)
			}),
			refusal.QEIdentityExpired,
		},
		"platform revoked": {
			with(func(p *sources) { p.RevokedPCK = []int64{evidencetest.SerialPCK} }),
			refusal.Revoked,
		},
		"authority revoked": {
			with(func(p *sources) { p.RevokedByRoot = []int64{evidencetest.SerialPlatformCA} }),
			refusal.Revoked,
		},
		"TCB signer revoked": {
			with(func(p *sources) { p.RevokedByRoot = []int64{evidencetest.SerialTCBSigning} }),
			refusal.Revoked,
		},
		"list by the root":     {with(func(p *sources) { p.PCKCRLByRoot = true }), refusal.CRLSignature},
		"list of the other CA": {with(func(p *sources) { p.Processor = true }), refusal.CRLSignature},
		"signed by a platform": {func(t *testing.T, b *bench) {
			b.collateral = b.intel.Collateral(t, func(p *sources) { p.TCBSignedByPCK = b.platform })
		}, refusal.TCBInfoChain},
		"unbound key":      {made(func(q *parts) { q.Unbound = true }), refusal.AttestationKeyBinding},
		"TCB info of SGX":  {with(func(p *sources) { p.TCBInfo["id"] = "SGX" }), refusal.TCBInfoVersion},
		"TCB info version": {with(func(p *sources) { p.TCBInfo["version"] = 4 }), refusal.TCBInfoVersion},
		"short components": {with(func(p *sources) {
			p.TCBInfo["tcbLevels"].([]any)[0].(map[string]any)["tcb"].(map[string]any)["sgxtcbcomponents"] = []any{}
		}), refusal.TCBInfoVersion},
		"identity of SGX": {with(func(p *sources) { p.QE["id"] = "QE" }), refusal.QEIdentityVersion},
		"evaluation": {
			demand(func(p *quote.Policy) { p.MinEvaluation = 19 }),
			refusal.TCBEvaluationNumber,
		},
		"evaluation met": {demand(func(p *quote.Policy) { p.MinEvaluation = 18 }), ""},
		"identity's evaluation": {
			both(with(func(p *sources) {
				p.QE["tcbEvaluationDataNumber"] = 17
			}), demand(func(p *quote.Policy) {
				p.MinEvaluation = 18
			})),
			refusal.TCBEvaluationNumber,
		},
		"another family": {
			with(func(p *sources) { p.TCBInfo["fmspc"] = "50806F000000" }),
			refusal.TCBInfoPlatform,
		},
		"family in lower case": {with(func(p *sources) { p.TCBInfo["fmspc"] = "90c06f000000" }), ""},
		"another PCE":          {with(func(p *sources) { p.TCBInfo["pceId"] = "0100" }), refusal.TCBInfoPlatform},
		"module's signer": {
			made(func(q *parts) { q.Body[evidencetest.OffSignerSEAM] = 1 }),
			refusal.TDXModule,
		},
		"unknown module":        {made(func(q *parts) { q.Body[1] = 9 }), refusal.TDXModule},
		"another enclave":       {made(func(q *parts) { q.QEReport[128] ^= 1 }), refusal.QEIdentity},
		"enclave's product":     {made(func(q *parts) { q.QEReport[256] ^= 1 }), refusal.QEIdentity},
		"enclave in debug mode": {made(func(q *parts) { q.QEReport[48] |= 2 }), refusal.QEIdentity},
		"enclave's miscselect":  {made(func(q *parts) { q.QEReport[16] |= 1 }), refusal.QEIdentity},
		"old platform": {
			with(func(p *sources) {
				p.TCBInfo["tcbLevels"].([]any)[0] = evidencetest.PlatformLevel(6, 5, 11, "UpToDate")
			}),
			refusal.TCBStatus,
		},
		"old PCE": {
			with(func(p *sources) {
				p.TCBInfo["tcbLevels"].([]any)[0] = evidencetest.PlatformLevel(5, 5, 12, "UpToDate")
			}),
			refusal.TCBStatus,
		},
		"too old a platform": {
			with(func(p *sources) {
				p.TCBInfo["tcbLevels"] = []any{evidencetest.PlatformLevel(6, 5, 11, "UpToDate")}
			}),
			refusal.TCBNotSupported,
		},
		"old module": {oldModule, refusal.TCBStatus},
		"old module, accepted": {
			both(oldModule, demand(func(p *quote.Policy) {
				p.AcceptStatus = []collateral.Status{"OutOfDate"}
			})),
			"",
		},
		"too old a module":   {made(func(q *parts) { q.Body[0] = 2 }), refusal.TCBNotSupported},
		"old loader":         {made(func(q *parts) { q.Body[2] = 4 }), refusal.TCBStatus},
		"old enclave":        {made(func(q *parts) { q.QEReport[258] = 5 }), refusal.TCBStatus},
		"too old an enclave": {made(func(q *parts) { q.QEReport[258] = 3 }), refusal.TCBNotSupported},
		"rejected advisory": {both(oldModule, demand(func(p *quote.Policy) {
			p.AcceptStatus, p.RejectAdvisories = []collateral.Status{"OutOfDate"}, []string{"INTEL-SA-01000"}
		})), refusal.Advisory},
		"revoked, accepted": {
			both(with(func(p *sources) {
				p.TCBInfo["tcbLevels"].([]any)[0] = evidencetest.PlatformLevel(5, 5, 11, "Revoked")
			}), demand(func(p *quote.Policy) {
				p.AcceptStatus = []collateral.Status{"Revoked", "UpToDate"}
			})),
			refusal.TCBStatus,
		},
		"a state of tomorrow": {
			with(func(p *sources) {
				p.TCBInfo["tcbLevels"].([]any)[0] = evidencetest.PlatformLevel(5, 5, 11, "Fine")
			}),
			refusal.TCBStatus,
		},
		"debug": {attributes(ve | 1), refusal.Debug},
		"debug, allowed": {
			both(attributes(ve|1), demand(func(p *quote.Policy) { p.AllowDebug = true })),
			"",
		},
		"untrusted": {
			both(attributes(ve|2), demand(func(p *quote.Policy) { p.AllowAttributes = ^attr.Attributes(0) })),
			refusal.Attributes,
		},
		"PKS": {attributes(ve | 1<<30), refusal.Attributes},
		"PKS, allowed": {
			both(attributes(ve|1<<30), demand(func(p *quote.Policy) { p.AllowAttributes = attr.PKS })),
			"",
		},
		"a bit without a name": {attributes(ve | 1<<40), refusal.Attributes},
		"migratable": {
			both(attributes(ve|1<<29), demand(func(p *quote.Policy) {
				p.AllowAttributes = attr.Migratable
			})),
			refusal.Attributes,
		},
		"migratable, TDX 1.5": {
			both(version5, attributes(ve|1<<29), demand(func(p *quote.Policy) {
				p.AllowAttributes = attr.Migratable
			})),
			"",
		},
		"exceptions by the host": {attributes(0), refusal.SEPTVEDisable},
		"these allowed": {
			both(attributes(0), demand(func(p *quote.Policy) { p.AllowNoSEPTVEDisable = true })),
			"",
		},
		"service TD": {
			both(version5, made(func(q *parts) { q.Body[evidencetest.OffServiceTD] = 1 })),
			refusal.ServiceTD,
		},
		"service TD, allowed": {
			both(version5, made(func(q *parts) {
				q.Body[evidencetest.OffServiceTD] = 1
			}), demand(func(p *quote.Policy) {
				p.AllowServiceTD = true
			})),
			"",
		},
		"MRTD":           {demand(func(p *quote.Policy) { p.MRTD = [][]byte{other} }), refusal.MRTD},
		"no MRTD at all": {demand(func(p *quote.Policy) { p.MRTD = [][]byte{} }), refusal.MRTD},
		"one of two": {
			demand(func(p *quote.Policy) { p.MRTD = [][]byte{other, bytes.Repeat([]byte{0x21}, 48)} }),
			"",
		},
		"report data": {
			demand(func(p *quote.Policy) { p.ReportData = make([]byte, 64) }),
			refusal.ReportData,
		},
		"MRCONFIGID": {demand(func(p *quote.Policy) { p.MRConfigID = other }), refusal.MRConfigID},
		"MROWNER":    {demand(func(p *quote.Policy) { p.MROwner = other }), refusal.MROwner},
		"MROWNERCONFIG": {
			demand(func(p *quote.Policy) { p.MROwnerConfig = other }),
			refusal.MROwnerConfig,
		},
		"MRSEAM": {demand(func(p *quote.Policy) { p.MRSEAM = other }), refusal.MRSEAM},
		"XFAM":   {demand(func(p *quote.Policy) { p.XFAM = make([]byte, 7) }), refusal.XFAM},
		"RTMR3":  {demand(func(p *quote.Policy) { p.RTMR[3] = [][]byte{other} }), refusal.RTMR},
		"RTMR1 met": {
			demand(func(p *quote.Policy) { p.RTMR[1] = [][]byte{bytes.Repeat([]byte{0x23}, 48)} }),
			"",
		},
		"family not listed": {
			demand(func(p *quote.Policy) { p.FMSPC = [][]byte{{1, 2, 3, 4, 5, 6}} }),
			refusal.FMSPCNotAllowed,
		},
		"platform not listed": {
			demand(func(p *quote.Policy) { p.Platforms = [][]byte{make([]byte, 16)} }),
			refusal.PlatformNotAllowed,
		},
		"platform listed": {
			demand(func(p *quote.Policy) { p.Platforms = [][]byte{evidencetest.PPID()} }),
			"",
		},
		"instance listed": {
			demand(func(p *quote.Policy) { p.Platforms = [][]byte{bytes.Repeat([]byte{0x77}, 16)} }),
			"",
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, true)
			if c.set != nil {
				c.set(t, b)
			}
			if _, got := b.judge(t); got != c.want {
				t.Errorf("reason %q, want %q", got, c.want)
			}
		})
	}
}
