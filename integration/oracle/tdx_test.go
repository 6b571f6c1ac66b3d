package oracle

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tdx-guest/verify"

	"github.com/vmlatch/vmlatch/firmware/evidence/evidencetest"
	"github.com/vmlatch/vmlatch/firmware/tdx/attr"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
	"github.com/vmlatch/vmlatch/firmware/tdx/quote"
)

func init() {
	known["SEAM"] = "go-tdx-guest leaves the module's signer to its validate package where there is no collateral"
	known["platform state"] = "go-tdx-guest takes the module's state alone where the module has a version:" +
		" platforms that" +
		" are out of date, or revoked, pass"
	known["Processor CA"] = "go-tdx-guest knows only platforms with several packages"
	known["empty line"] = "go-tdx-guest reads no chain that has an empty line behind it"
	recordedDifferences["v5 quote (TDX 1.5 body) with collateral"] = "empty line"
	known["end of the chain"] = "the length of the chain, which nothing signs, leaves out the end of the root at its" +
		" end: the" +
		" root is compiled in"
}

// ourQuote judges a quote by this project. text is collateral, nil for none.
func ourQuote(raw, text []byte, root *collateral.Root, at time.Time) error {
	q, err := quote.Parse(raw)
	if err != nil {
		return err
	}
	e := &quote.Evidence{Quote: q, Root: root}
	if text != nil {
		if e.Collateral, err = collateral.Parse(text); err != nil {
			return err
		}
	}
	_, err = e.Verify(at, &quote.Policy{
		AllowDebug: true, AllowNoSEPTVEDisable: true, AllowAttributes: ^attr.Attributes(0), AllowServiceTD: true,
		NoCollateral: true,
	})
	return err
}

// served answers go-tdx-guest's questions from collateral.
type served struct{ c *collateral.Collateral }

func (s served) Get(address string) (map[string][]string, []byte, error) {
	answer := func(header string, chain []byte, key string, text, sig []byte) (map[string][]string, []byte, error) {
		body := fmt.Sprintf(`{%q:%s,"signature":%q}`, key, text, hex.EncodeToString(sig))
		return map[string][]string{header: {url.QueryEscape(string(chain))}}, []byte(body), nil
	}
	switch {
	case strings.Contains(address, "pckcrl"):
		return map[string][]string{"Sgx-Pck-Crl-Issuer-Chain": {url.QueryEscape(string(s.c.PCKCRLChain))}},
			s.c.PCKCRL, nil
	case strings.Contains(address, "/tcb"):
		return answer("Tcb-Info-Issuer-Chain", s.c.TCBInfoChain, "tcbInfo", s.c.TCBInfo, s.c.TCBInfoSig)
	case strings.Contains(address, "identity"):
		return answer("Sgx-Enclave-Identity-Issuer-Chain", s.c.QEChain, "enclaveIdentity", s.c.QE, s.c.QESig)
	case strings.Contains(address, "RootCA"):
		return nil, s.c.RootCRL, nil
	}
	return nil, nil, errors.New("unknown address " + address)
}

// theirQuote judges it by go-tdx-guest. A panic is an error.
func theirQuote(raw, text []byte, root *x509.Certificate, at time.Time) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	pool := x509.NewCertPool()
	pool.AddCert(root)
	opts := &verify.Options{TrustedRoots: pool, Now: &verify.TimeSet{
		PckCertChain: at, TcbInfo: at, QeIdentity: at, PckCrl: at, RootCaCrl: at,
	}}
	if text != nil {
		c, err := collateral.Parse(text)
		if err != nil {
			return err
		}
		opts.GetCollateral, opts.CheckRevocations, opts.Getter = true, true, served{c}
	}
	return verify.RawTdxQuote(raw, opts)
}

// TestQuotes compares judgements on quotes, with and without faults.
func TestQuotes(t *testing.T) {
	at := evidencetest.AsOf()
	intel := evidencetest.NewIntel(t)
	root, platform := intel.Root(t), intel.Platform(t, true)
	other := evidencetest.NewIntel(t)
	type parts = evidencetest.QuoteParts
	for name, c := range map[string]struct {
		raw   []byte
		root  *collateral.Root
		at    time.Time
		about string
	}{
		"good":       {platform.Quote(t), root, at, ""},
		"behind it":  {platform.Quote(t, func(q *parts) { q.Behind = make([]byte, 100) }), root, at, ""},
		"version 5":  {platform.Quote(t, func(q *parts) { q.Version, q.Is15 = 5, true }), root, at, ""},
		"unbound":    {platform.Quote(t, func(q *parts) { q.Unbound = true }), root, at, ""},
		"other root": {platform.Quote(t), other.Root(t), at, ""},
		"expired":    {platform.Quote(t), root, evidencetest.End().AddDate(1, 0, 0), ""},
		"module signer": {
			platform.Quote(t, func(q *parts) { q.Body[evidencetest.OffSignerSEAM] = 1 }), root,
			at, "SEAM",
		},
		"one package": {intel.Platform(t, false).Quote(t), root, at, "Processor CA"},
	} {
		compare(t, name, c.about, ourQuote(c.raw, nil, c.root, c.at), theirQuote(c.raw, nil, c.root.X509, c.at))
	}
}

// TestDamagedQuotes compares judgements on a quote of which one bit was changed.
func TestDamagedQuotes(t *testing.T) {
	at := evidencetest.AsOf()
	intel := evidencetest.NewIntel(t)
	root := intel.Root(t)
	good := intel.Platform(t, true).Quote(t)
	used["end of the chain"] = true // whether a bit of the length does that depends on the length
	for bit := 0; bit < 8*1300; bit += 11 {
		bad := bytes.Clone(good)
		bad[bit/8] ^= 1 << (bit % 8)
		mine, other, about := ourQuote(bad, nil, root, at), theirQuote(bad, nil, root.X509, at), ""
		if mine == nil && other != nil && strings.Contains(other.Error(), "certificate chain size") {
			about = "end of the chain"
		}
		compare(t, fmt.Sprintf("bit %d of byte %#x", bit%8, bit/8), about, mine, other)
	}
}

// TestStates compares judgements by collateral.
func TestStates(t *testing.T) {
	at := evidencetest.AsOf()
	intel := evidencetest.NewIntel(t)
	root, platform := intel.Root(t), intel.Platform(t, true)
	type parts = evidencetest.Parts
	lower := func(p *parts) { p.TCBInfo["fmspc"] = "90c06f000000" }
	for name, c := range map[string]struct {
		change func(*parts)
		module byte
		about  string
	}{
		"up to date":      {func(*parts) {}, 7, ""},
		"as Intel writes": {func(p *parts) { p.TCBInfo["fmspc"] = "90C06F000000" }, 7, ""},
		"old module":      {func(*parts) {}, 4, ""},
		"old platform": {func(p *parts) {
			p.TCBInfo["tcbLevels"].([]any)[0] = evidencetest.PlatformLevel(6, 5, 11, "UpToDate")
		}, 7, "platform state"},
		"another family": {func(p *parts) { p.TCBInfo["fmspc"] = "50806f000000" }, 7, ""},
		"expired": {func(p *parts) {
			p.TCBInfo["nextUpdate"] = at.Add(-time.Hour).Format(time.RFC3339)
		}, 7, ""},
		"platform revoked":  {func(p *parts) { p.RevokedPCK = []int64{evidencetest.SerialPCK} }, 7, ""},
		"authority revoked": {func(p *parts) { p.RevokedByRoot = []int64{evidencetest.SerialPlatformCA} }, 7, ""},
		"old enclave": {func(p *parts) {
			p.QE["tcbLevels"] = []any{evidencetest.SVNLevel(9, "UpToDate"), evidencetest.SVNLevel(1, "OutOfDate")}
		}, 7, ""},
		"signed by a platform": {func(p *parts) { p.TCBSignedByPCK = platform }, 7, ""},
	} {
		raw := platform.Quote(t, func(q *evidencetest.QuoteParts) { q.Body[0] = c.module })
		text := intel.Collateral(t, lower, c.change)
		compare(t, name, c.about, ourQuote(raw, text, root, at), theirQuote(raw, text, root.X509, at))
	}
}

// TestRecordedQuotes compares judgements on the vectors that this machine has, without the
// owner's demands.
func TestRecordedQuotes(t *testing.T) {
	evidencetest.EachVector(t, "tdx", func(t *testing.T, v *evidencetest.Vector) {
		if v.Name(t, "root") != "intel/root" {
			t.Skip("made by another test root: TestQuotes and TestStates have its kind")
		}
		raw, text := v.Input(t, "quote"), v.Input(t, "collateral")
		mine := ourQuote(raw, text, collateral.Intel(), v.AsOf)
		compare(t, v.Title, recordedDifferences[v.Title], mine, theirQuote(raw, text, collateral.Intel().X509, v.AsOf))
	})
}
