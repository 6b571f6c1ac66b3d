package bundle_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/evidence/bundle"
	"github.com/vmlatch/vmlatch/firmware/evidence/evidencetest"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
	"github.com/vmlatch/vmlatch/firmware/tdx/quote"
)

// world is what tests make parts from.
type world struct {
	amd   *evidencetest.AMD
	intel *evidencetest.Intel
	roots bundle.Roots
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{amd: evidencetest.NewAMD(t, kds.Milan, 0), intel: evidencetest.NewIntel(t)}
	w.roots = bundle.Roots{AMD: evidencetest.Roots(t, w.amd), Intel: w.intel.Root(t)}
	return w
}

// parts are one of each kind, and several of some.
func (w *world) parts(t testing.TB) (parts []bundle.Part) {
	t.Helper()
	old := kds.TCB{BootLoader: 3, SNP: 8, Microcode: 115}
	parts = append(
		parts,
		bundle.Part{Kind: bundle.Endorsement, Data: w.amd.VCEK(t).Cert.Raw},
		bundle.Part{Kind: bundle.Endorsement, Data: w.amd.EndorsedFor(t, old).Cert.Raw},
		bundle.Part{Kind: bundle.Endorsement, Data: w.amd.VLEK(t).Cert.Raw},
		bundle.Part{Kind: bundle.AMDCRL, Data: w.amd.CRL(t)},
		bundle.Part{
			Kind: bundle.AMDCRL,
			Data: w.amd.CRLBetween(t, evidencetest.AsOf(), evidencetest.AsOf().AddDate(1, 0, 0)),
		},
		bundle.Part{Kind: bundle.AMDCRL, Data: w.amd.CRL(t, 77)},
	)
	for _, evaluation := range []int{17, 18} {
		c, err := collateral.Parse(w.intel.Collateral(t, func(p *evidencetest.Parts) {
			p.TCBInfo["tcbEvaluationDataNumber"], p.QE["tcbEvaluationDataNumber"] = evaluation, evaluation
		}))
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, bundle.FromCollateral(c)...)
	}
	return parts
}

func (w *world) build(t testing.TB, parts []bundle.Part) *bundle.Bundle {
	t.Helper()
	b := bundle.New()
	for _, p := range parts {
		if _, err := b.Add(p, w.roots); err != nil {
			t.Fatalf("%s: %v", p.Kind, err)
		}
	}
	return b
}

func text(t testing.TB, b *bundle.Bundle) string {
	t.Helper()
	out, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestMerging: which part comes first, and in which of two bundles, plays no part; and a part
// that is added twice changes nothing.
func TestMerging(t *testing.T) {
	w := newWorld(t)
	parts := w.parts(t)
	want := text(t, w.build(t, parts))
	for shift := range parts {
		order := slices.Concat(parts[shift:], parts[:shift])
		if shift%2 == 0 {
			slices.Reverse(order)
		}
		b := w.build(t, order)
		if got := text(t, b); got != want {
			t.Fatalf("in another order the bundle differs:\n%s\nwant\n%s", got, want)
		}
		again, err := bundle.Parse([]byte(want))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range again.Parts {
			if changed, err := b.Add(p, w.roots); changed || err != nil {
				t.Errorf("%s again: changed %t, %v", p.Kind, changed, err)
			}
		}
	}
	b := w.build(t, parts)
	if n := len(b.Parts); n != 3+2+1+1+2+2 {
		t.Errorf(
			"%d parts, want the three certificates, the newest list and the one that revokes more, and the rest",
			n,
		)
	}
}

// TestNothingUnsignedIsKept: a part of another root, or with a changed bit, is refused and
// leaves the bundle as it was.
func TestNothingUnsignedIsKept(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	other.roots.AMD = evidencetest.Roots(t, evidencetest.NewAMD(t, kds.Milan, 1))
	b := bundle.New()
	for _, p := range w.parts(t) {
		if _, err := b.Add(p, other.roots); refusal.Of(err) == nil {
			t.Errorf("%s of another root: %v, want a refusal", p.Kind, err)
		}
		for _, at := range []int{len(p.Data) / 3, len(p.Data) / 2, len(p.Data) - 1} {
			bad := p
			bad.Data = bytes.Clone(p.Data)
			bad.Data[at] ^= 1
			if _, err := b.Add(bad, w.roots); err == nil {
				t.Errorf("%s with byte %d changed is kept", p.Kind, at)
			}
		}
	}
	if _, err := b.Add(bundle.Part{Kind: "secret", Data: []byte("x")}, w.roots); !errors.Is(
		err,
		bundle.ErrFormat,
	) {
		t.Errorf("an unknown kind: %v", err)
	}
	if _, err := b.Add(bundle.Part{Kind: bundle.CEK, Data: make([]byte, 2084)}, w.roots); err == nil {
		t.Error("a CEK is kept without a root")
	}
	if len(b.Parts) != 0 {
		t.Errorf("kept: %+v", b.Parts)
	}
}

// TestUse: the right certificate is found among several, and the right collateral.
func TestUse(t *testing.T) {
	w := newWorld(t)
	keys := []*evidencetest.Endorsed{
		w.amd.VCEK(
			t,
		), w.amd.EndorsedFor(t, kds.TCB{BootLoader: 3, SNP: 8, Microcode: 115}), w.amd.VLEK(t), w.amd.VCEK(t),
	}
	b := bundle.New()
	for _, k := range keys[:3] {
		if _, err := b.Add(bundle.Part{Kind: bundle.Endorsement, Data: k.Cert.Raw}, w.roots); err != nil {
			t.Fatal(err)
		}
	}
	for i, k := range keys {
		r, err := report.Parse(k.Report(t))
		if err != nil {
			t.Fatal(err)
		}
		got := b.Endorsement(r, w.roots)
		if i == 3 { // another key with the name of the first: the judgement refuses the signature
			if got == nil || r.SignedBy(got) {
				t.Error("a key that has no certificate is taken for one that has")
			}
			continue
		}
		if got == nil || !bytes.Equal(got.X509.Raw, k.Cert.Raw) {
			t.Errorf("key %d: another certificate is found", i)
		}
		masked, err := report.Parse(k.Report(t, func(b []byte) { copy(b[0x1a0:], make([]byte, 64)) }))
		if err != nil {
			t.Fatal(err)
		}
		if got := b.Endorsement(masked, w.roots); got == nil || !bytes.Equal(got.X509.Raw, k.Cert.Raw) {
			t.Errorf("key %d, masked: another certificate is found", i)
		}
	}
	full := w.build(t, w.parts(t))
	asOf := evidencetest.AsOf()
	if list := full.CRLs(kds.Milan, w.roots); len(list) != 2 {
		t.Errorf("%d lists, want the newest and the one that revokes more", len(list))
	}
	if list := full.CRLs(kds.Turin, w.roots); list != nil {
		t.Error("a list of another line is found")
	}
	q, err := quote.Parse(w.intel.Platform(t, true).Quote(t))
	if err != nil {
		t.Fatal(err)
	}
	e := &quote.Evidence{Quote: q, Root: w.roots.Intel}
	pck, err := q.Claimed()
	if err != nil {
		t.Fatal(err)
	}
	if e.Collateral = full.Collateral(pck, asOf, w.roots); e.Collateral == nil {
		t.Fatal("no collateral is found")
	}
	v, err := e.Verify(asOf, &quote.Policy{})
	if err != nil || v.State.Evaluation != 18 {
		t.Errorf("%+v, %v, want it accepted by evaluation 18", v, err)
	}
	for i := range full.Parts {
		switch full.Parts[i].Kind {
		case bundle.RootCRL, bundle.PCKCRL:
			less := &bundle.Bundle{Parts: slices.Delete(slices.Clone(full.Parts), i, i+1)}
			if less.Collateral(pck, asOf, w.roots) != nil {
				t.Errorf("collateral is found without a %s", full.Parts[i].Kind)
			}
		}
	}
}

// TestRecognise: parts are recognised in the forms that people have them in.
func TestRecognise(t *testing.T) {
	w := newWorld(t)
	vcek, crl := w.amd.VCEK(t).Cert.Raw, w.amd.CRL(t)
	whole := w.intel.Collateral(t)
	c, err := collateral.Parse(whole)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	answer := func(key string, text, sig []byte) []byte {
		return []byte(`{"` + key + `":` + string(text) + `,"signature":"` + hex.EncodeToString(sig) + `"}`)
	}
	b := w.build(t, w.parts(t))
	n := len(b.Parts)
	for name, x := range map[string]struct {
		content []byte
		kinds   []bundle.Kind
		chains  int
	}{
		"VCEK in DER":       {vcek, []bundle.Kind{bundle.Endorsement}, 0},
		"VCEK in PEM":       {block("CERTIFICATE", vcek), []bundle.Kind{bundle.Endorsement}, 0},
		"AMD's authorities": {w.amd.RootPEM(), nil, 0},
		"list in DER":       {crl, []bundle.Kind{bundle.AMDCRL}, 0},
		"list in PEM":       {block("X509 CRL", crl), []bundle.Kind{bundle.AMDCRL}, 0},
		"list in hex":       {[]byte(hex.EncodeToString(c.RootCRL) + "\n"), []bundle.Kind{bundle.RootCRL}, 0},
		"PCK list":          {c.PCKCRL, []bundle.Kind{bundle.PCKCRL}, 0},
		"TCB info":          {answer("tcbInfo", c.TCBInfo, c.TCBInfoSig), []bundle.Kind{bundle.TCBInfo}, 0},
		"identity":          {answer("enclaveIdentity", c.QE, c.QESig), []bundle.Kind{bundle.QEIdentity}, 0},
		"collateral": {whole, []bundle.Kind{
			bundle.RootCRL, bundle.PCKCRL, bundle.TCBInfo,
			bundle.QEIdentity,
		}, 0},
		"chain": {c.TCBInfoChain, nil, 1},
		"headers": {[]byte("HTTP/1.1 200 OK\r\nTCB-Info-Issuer-Chain: " +
			url.PathEscape(string(c.TCBInfoChain)) + "\r\n\r\n"), nil, 1},
		"answer with headers": {
			append([]byte("HTTP/2 200\r\nContent-Type: application/pkix-crl\r\n\r\n"), c.RootCRL...),
			[]bundle.Kind{bundle.RootCRL},
			0,
		},
		"answer behind a redirection": {
			append([]byte("HTTP/1.1 301 Moved\r\nLocation: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"), vcek...),
			[]bundle.Kind{bundle.Endorsement},
			0,
		},
		"SEV certificate": {make([]byte, 2084), []bundle.Kind{bundle.CEK}, 0},
	} {
		f, err := bundle.Recognise(x.content)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var kinds []bundle.Kind
		for _, p := range f.Parts {
			kinds = append(kinds, p.Kind)
		}
		if !slices.Equal(kinds, x.kinds) || len(f.Chains) != x.chains {
			t.Errorf("%s: %q and %d chains, want %q and %d", name, kinds, len(f.Chains), x.kinds, x.chains)
		}
	}
	if f, err := bundle.Recognise([]byte(text(t, b))); err != nil || len(f.Parts) != n {
		t.Errorf("a bundle: %v, want its %d parts", err, n)
	}
	for name, bad := range map[string][]byte{
		"an answer that fails": append([]byte("HTTP/1.1 404 Not Found\r\n\r\n"), vcek...),
		"no status":            []byte("HTTP/"),
		"nothing":              nil, "noise": []byte("hello"), "an array": []byte("[]"),
		"another object": []byte(`{"x":1}`),
		"a cut block":    []byte("-----BEGIN CERTIFICATE-----\nMIIB"), "a block of noise": block("CERTIFICATE",
			[]byte("x")),
	} {
		if f, err := bundle.Recognise(bad); err == nil {
			t.Errorf("%s: %+v, want an error", name, f)
		}
	}
}

// TestChains: parts that do not name their signer are kept with a chain from other files, or
// from the bundle, and otherwise not.
func TestChains(t *testing.T) {
	w := newWorld(t)
	c, err := collateral.Parse(w.intel.Collateral(t))
	if err != nil {
		t.Fatal(err)
	}
	bare := bundle.Part{Kind: bundle.TCBInfo, Data: c.TCBInfo, Signature: c.TCBInfoSig}
	b := bundle.New()
	if _, err := b.AddWithChains(bare, nil, w.roots); !errors.Is(err, bundle.ErrNoChain) {
		t.Errorf("without a chain: %v, want %v", err, bundle.ErrNoChain)
	}
	if _, err := b.AddWithChains(bare, [][]byte{c.PCKCRLChain}, w.roots); !errors.Is(err, bundle.ErrNoChain) {
		t.Errorf("with another chain: %v, want %v", err, bundle.ErrNoChain)
	}
	if changed, err := b.AddWithChains(bare, [][]byte{c.PCKCRLChain, c.TCBInfoChain}, w.roots); err != nil ||
		!changed {
		t.Errorf("with its chain: %t, %v", changed, err)
	}
	qe := bundle.Part{Kind: bundle.QEIdentity, Data: c.QE, Signature: c.QESig}
	if changed, err := b.AddWithChains(qe, nil, w.roots); err != nil || !changed {
		t.Errorf("with the bundle's chain: %t, %v", changed, err)
	}
}

func TestParse(t *testing.T) {
	w := newWorld(t)
	good := text(t, w.build(t, w.parts(t)))
	if _, err := bundle.Parse([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"empty": "", "another schema": strings.Replace(good, "bundle/1", "bundle/2", 1),
		"an unknown key":   `{"schema":"latch-bundle/1","x":1}`,
		"something behind": good + "{}", "too large": strings.Repeat(" ", bundle.MaxSize+1), "cut": good[:len(good)/2],
	} {
		if _, err := bundle.Parse([]byte(bad)); !errors.Is(err, bundle.ErrFormat) {
			t.Errorf("%s: %v, want %v", name, err, bundle.ErrFormat)
		}
	}
}

func FuzzParse(f *testing.F) {
	w := newWorld(f)
	f.Add([]byte(text(f, w.build(f, w.parts(f)))))
	f.Fuzz(func(_ *testing.T, b []byte) {
		if x, err := bundle.Parse(b); err == nil {
			for _, p := range x.Parts {
				_, _ = p.Inspect(w.roots)
			}
		}
	})
}

func FuzzRecognise(f *testing.F) {
	w := newWorld(f)
	f.Add(w.intel.Collateral(f))
	f.Add(w.amd.CRL(f))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = bundle.Recognise(b) })
}

// collateralOf adds collateral of an evaluation, as it is after a change.
func (w *world) collateralOf(
	t testing.TB, b *bundle.Bundle, evaluation int, change func(*evidencetest.Parts), only ...bundle.Kind,
) {
	t.Helper()
	c, err := collateral.Parse(w.intel.Collateral(t, func(p *evidencetest.Parts) {
		p.TCBInfo["tcbEvaluationDataNumber"], p.QE["tcbEvaluationDataNumber"] = evaluation, evaluation
		change(p)
	}))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range bundle.FromCollateral(c) {
		if only != nil && !slices.Contains(only, p.Kind) {
			continue
		}
		if _, err := b.Add(p, w.roots); err != nil {
			t.Fatal(err)
		}
	}
}

// verdict is the reason for which a good quote is refused by a bundle; "" if it is accepted.
func (w *world) verdict(t testing.TB, b *bundle.Bundle) refusal.Reason {
	t.Helper()
	q, err := quote.Parse(w.intel.Platform(t, true).Quote(t))
	if err != nil {
		t.Fatal(err)
	}
	pck, err := q.Claimed()
	if err != nil {
		t.Fatal(err)
	}
	e := &quote.Evidence{Quote: q, Root: w.roots.Intel, Collateral: b.Collateral(pck, evidencetest.AsOf(), w.roots)}
	_, err = e.Verify(evidencetest.AsOf(), &quote.Policy{})
	if err == nil {
		return ""
	}
	return refusal.Of(err).Reason
}

// TestGenuineButOlder: what a host adds of the vendors' own cannot make a platform look better,
// nor lock the owner out.
func TestGenuineButOlder(t *testing.T) {
	w := newWorld(t)
	yesterday := func(p *evidencetest.Parts) {
		p.TCBInfo["nextUpdate"] = evidencetest.AsOf().Add(-1e9).Format("2006-01-02T15:04:05Z")
	}
	b := bundle.New()
	w.collateralOf(t, b, 20, yesterday)
	if got := w.verdict(t, b); got != refusal.TCBInfoExpired {
		t.Fatalf("%q, want %s", got, refusal.TCBInfoExpired)
	}
	w.collateralOf(t, b, 17, func(*evidencetest.Parts) {})
	if got := w.verdict(t, b); got != refusal.TCBInfoExpired {
		t.Errorf("with an older evaluation: %q, want %s", got, refusal.TCBInfoExpired)
	}
	b = bundle.New()
	w.collateralOf(t, b, 18, func(*evidencetest.Parts) {})
	w.collateralOf(t, b, 19, func(p *evidencetest.Parts) {
		p.TCBInfo["tcbLevels"] = []any{evidencetest.PlatformLevel(1, 1, 1, "OutOfDate")}
	}, bundle.TCBInfo)
	if got := w.verdict(t, b); got != "" {
		t.Errorf("with half of a later evaluation: %q, want it accepted", got)
	}
	revoked := func(p *evidencetest.Parts) { p.RevokedPCK = []int64{evidencetest.SerialPCK} }
	w.collateralOf(t, b, 18, revoked, bundle.PCKCRL)
	w.collateralOf(t, b, 18, func(*evidencetest.Parts) {}, bundle.PCKCRL)
	if got := w.verdict(t, b); got != refusal.Revoked {
		t.Errorf("with two lists, of which one revokes: %q, want %s", got, refusal.Revoked)
	}
}

// TestDisplaced: parts that do not verify are never used, and do not keep others out.
func TestDisplaced(t *testing.T) {
	w := newWorld(t)
	good := w.build(t, w.parts(t))
	i := slices.IndexFunc(good.Parts, func(p bundle.Part) bool { return p.Kind == bundle.TCBInfo })
	bad := good.Parts[i]
	bad.Signature = bytes.Clone(bad.Signature)
	bad.Signature[0] ^= 1
	forged := bad
	forged.Data = bytes.Replace(bad.Data, []byte("Number\":17"), []byte("Number\":99"), 1)
	forged.Data = bytes.Replace(forged.Data, []byte("Number\":18"), []byte("Number\":99"), 1)
	file, err := json.Marshal(&bundle.Bundle{Schema: bundle.Schema, Parts: append([]bundle.Part{bad, forged},
		good.Parts...)})
	if err != nil {
		t.Fatal(err)
	}
	b, err := bundle.Parse(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := w.verdict(t, b); got != "" {
		t.Errorf("next to forged parts: %q, want it accepted", got)
	}
	b = &bundle.Bundle{Schema: bundle.Schema, Parts: []bundle.Part{bad}}
	if changed, err := b.Add(good.Parts[i], w.roots); !changed || err != nil || len(b.Parts) != 1 {
		t.Errorf(
			"a good part in the place of a bad one of the same data: %t, %v, %d parts",
			changed,
			err,
			len(b.Parts),
		)
	}
	padded := good.Parts[i]
	padded.Chain = append(bytes.Repeat([]byte("x\n"), bundle.MaxSize/2), padded.Chain...)
	b = bundle.New()
	if _, err := b.Add(padded, w.roots); err != nil {
		t.Fatal(err)
	}
	if text, err := b.Bytes(); err != nil || len(text) > 100<<10 {
		t.Errorf("a padded chain: %d bytes, %v, want what its certificates take", len(text), err)
	}
}

// TestTogether: several goroutines may judge by one bundle.
func TestTogether(t *testing.T) {
	w := newWorld(t)
	b, err := bundle.Parse([]byte(text(t, w.build(t, w.parts(t)))))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if got := w.verdict(t, b); got != "" {
				t.Errorf("%q, want it accepted", got)
			}
			if _, err := b.Bytes(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}
