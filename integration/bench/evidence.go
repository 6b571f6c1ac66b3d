package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence"
	"github.com/vmlatch/vmlatch/firmware/evidence/bundle"
	"github.com/vmlatch/vmlatch/firmware/evidence/evidencetest"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
	"github.com/vmlatch/vmlatch/firmware/tdx/quote"
)

// evidence times judgements against the bare signatures that each has to verify.
func (b *bench) evidence() (err error) {
	testing.Init()
	testing.Benchmark(func(t *testing.B) { // which makes evidence as tests do
		if err == nil && b.work != "" {
			err = b.judge(t)
		}
	})
	return err
}

// Signatures that a judgement verifies.
const (
	rsaOfReport = 3 // VCEK, ASK, revocation list
	p256OfQuote = 6 // PCK, its authority, two lists, the enclave's report, the quote: collateral is kept
)

func (b *bench) judge(t *testing.B) error {
	if len(b.rows) > 0 && b.rows[len(b.rows)-1][0] == "latchkey quote verify" {
		return nil // done by an earlier round of the benchmark
	}
	amd, intel := evidencetest.NewAMD(t, kds.Milan, 0), evidencetest.NewIntel(t)
	raw, quo := amd.VCEK(t), intel.Platform(t, true).Quote(t)
	rep := raw.Report(t)
	c, err := collateral.Parse(intel.Collateral(t))
	if err != nil {
		return err
	}
	roots := bundle.Roots{AMD: evidencetest.Roots(t, amd), Intel: intel.Root(t)}
	store := bundle.New()
	for _, p := range append(bundle.FromCollateral(c), bundle.Part{Kind: bundle.Endorsement, Data: raw.Cert.Raw},
		bundle.Part{Kind: bundle.AMDCRL, Data: amd.CRL(t)}) {
		if _, err := store.Add(p, roots); err != nil {
			return err
		}
	}
	demands := &evidence.Demands{
		Report: &report.Policy{AllowSMT: true, RequireCRL: true, Measurements: [][]byte{rep[0x90:0xc0]}},
		Quote:  &quote.Policy{},
	}
	sources := &evidence.Sources{Roots: roots, Bundle: store}
	verdict := func(b []byte) func() error {
		return func() error {
			e, err := evidence.Recognise(b)
			if err != nil {
				return err
			}
			if v := evidence.Judge(e, sources, demands, evidencetest.AsOf()); !v.Accepted {
				return v.Refusal
			}
			return nil
		}
	}
	p384, err := signatures(elliptic.P384(), 1)
	if err != nil {
		return err
	}
	p256, err := signatures(elliptic.P256(), p256OfQuote)
	if err != nil {
		return err
	}
	pss, err := rsaSignatures(rsaOfReport)
	if err != nil {
		return err
	}
	for _, row := range []struct {
		what    string
		verdict func() error
		bare    func() error
	}{
		{"verdict on an SNP report", verdict(rep), func() error { p384(); pss(); return nil }},
		{"verdict on a TDX quote with collateral", verdict(quo), func() error { p256(); return nil }},
	} {
		value, floor, err := pairs(b.rounds*10, row.verdict, row.bare)
		if err != nil {
			return fmt.Errorf("%s: %w", row.what, err)
		}
		b.row(row.what, value, floor, float64(value)/float64(floor), "< 1.30")
	}
	return b.judgeAsProcess(store, intel, amd, rep, quo)
}

// pairs times two things in turn, and gives the medians.
func pairs(n int, first, second func() error) (a, b time.Duration, err error) {
	var x, y []time.Duration
	for range n {
		for _, f := range []struct {
			do func() error
			to *[]time.Duration
		}{{first, &x}, {second, &y}} {
			begin := time.Now()
			if err := f.do(); err != nil {
				return 0, 0, err
			}
			*f.to = append(*f.to, time.Since(begin))
		}
	}
	return median(x), median(y), nil
}

// signatures makes some, and returns what verifies all.
func signatures(curve elliptic.Curve, n int) (verify func(), err error) {
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		return nil, err
	}
	sum := sha512.Sum384([]byte("a report"))
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	return func() {
		for range n {
			if !ecdsa.VerifyASN1(&key.PublicKey, sum[:], sig) {
				panic("bench: a signature of its own is wrong")
			}
		}
	}, err
}

func rsaSignatures(n int) (verify func(), err error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte("a certificate"))
	sig, err := rsa.SignPKCS1v15(rand.Reader, key, 5, sum[:]) // crypto.SHA256
	return func() {
		for range n {
			if err := rsa.VerifyPKCS1v15(&key.PublicKey, 5, sum[:], sig); err != nil {
				panic("bench: a signature of its own is wrong")
			}
		}
	}, err
}

// judgeAsProcess times whole commands.
func (b *bench) judgeAsProcess(
	store *bundle.Bundle, intel *evidencetest.Intel, amd *evidencetest.AMD, rep, quo []byte,
) error {
	text, err := store.Bytes()
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"bundle.json": text, "roots.pem": append(amd.RootPEM(), intel.RootPEM()...), "report.bin": rep,
		"quote.bin": quo,
	} {
		if err := os.WriteFile(filepath.Join(b.work, name), content, 0o600); err != nil {
			return err
		}
	}
	for _, kind := range []string{"report", "quote"} {
		var times []time.Duration
		for range b.rounds {
			d, err := b.timed("latchkey", kind, "verify", kind+".bin", "--genuine", "--bundle", "bundle.json",
				"--trust-root",
				"roots.pem", "--as-of", "2026-06-01")
			if err != nil {
				return err
			}
			times = append(times, d)
		}
		d := median(times)
		b.rows = append(b.rows, []string{
			"latchkey " + kind + " verify",
			d.Round(10 * time.Microsecond).String(), "", "", "< 25ms",
		})
	}
	return nil
}
