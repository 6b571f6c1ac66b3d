package quote_test

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/evidence/evidencetest"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
	"github.com/vmlatch/vmlatch/firmware/tdx/quote"
)

// TestProcessorCA: platforms of one package have another authority, and a shorter extension.
func TestProcessorCA(t *testing.T) {
	b := newBench(t, false)
	b.policy.Platforms = [][]byte{evidencetest.PPID()}
	v, reason := b.judge(t)
	if reason != "" || v.PCK.InstanceID != nil {
		t.Errorf("%q, %+v, want it accepted, and no instance ID", reason, v)
	}
}

// TestStates: the state of a platform is that of its parts together.
func TestStates(t *testing.T) {
	for _, c := range []struct{ platform, module, qe, want collateral.Status }{
		{"UpToDate", "UpToDate", "UpToDate", "UpToDate"},
		{"SWHardeningNeeded", "UpToDate", "UpToDate", "SWHardeningNeeded"},
		{"UpToDate", "OutOfDate", "UpToDate", "OutOfDate"},
		{"SWHardeningNeeded", "OutOfDate", "UpToDate", "OutOfDate"},
		{"ConfigurationNeeded", "OutOfDate", "UpToDate", "OutOfDateConfigurationNeeded"},
		{"ConfigurationAndSWHardeningNeeded", "UpToDate", "OutOfDate", "OutOfDateConfigurationNeeded"},
		{"OutOfDate", "UpToDate", "UpToDate", "OutOfDate"},
		{"OutOfDate", "OutOfDate", "OutOfDate", "OutOfDate"},
		{"OutOfDateConfigurationNeeded", "OutOfDate", "UpToDate", "OutOfDateConfigurationNeeded"},
		{"UpToDate", "Revoked", "UpToDate", "Revoked"},
		{"OutOfDate", "UpToDate", "Revoked", "Revoked"},
		{"Revoked", "OutOfDate", "UpToDate", "Revoked"},
		{"UpToDate", "UpToDate", "SWHardeningNeeded", "UpToDate"},
		{"OutOfDate", "ConfigurationNeeded", "UpToDate", "OutOfDate"},
		{"UpToDate", "UpToDate", "AnotherState", "Revoked"},
		{"Revoked", "UpToDate", "SWHardeningNeeded", "Revoked"},
		{"OutOfDate", "Revoked", "SWHardeningNeeded", "Revoked"},
	} {
		b := newBench(t, true)
		b.collateral = b.intel.Collateral(t, authority(true), func(p *evidencetest.Parts) {
			p.TCBInfo["tcbLevels"] = []any{evidencetest.PlatformLevel(5, 5, 11, string(c.platform), "INTEL-SA-2")}
			identity := p.TCBInfo["tdxModuleIdentities"].([]any)[0].(map[string]any)
			identity["tcbLevels"] = []any{evidencetest.SVNLevel(1, string(c.module), "INTEL-SA-1", "INTEL-SA-2")}
			p.QE["tcbLevels"] = []any{evidencetest.SVNLevel(1, string(c.qe), "INTEL-SA-9")}
		})
		v, _ := b.judge(t)
		if v.State.Status != c.want || !slices.Equal(v.State.Advisories, []string{
			"INTEL-SA-1", "INTEL-SA-2",
			"INTEL-SA-9",
		}) {
			t.Errorf("%s, %s, %s: %+v, want %s", c.platform, c.module, c.qe, v.State, c.want)
		}
	}
}

// TestRelaunch: where only a launch anew is missing, that is said.
func TestRelaunch(t *testing.T) {
	for name, c := range map[string]struct {
		now  byte
		want bool
	}{"the host has a newer module": {7, true}, "it has the old one": {4, false}} {
		b := newBench(t, true)
		b.change = append(b.change, func(q *evidencetest.QuoteParts) {
			q.Version, q.Is15, q.Body[0], q.Body[evidencetest.OffTCBSVN2] = 5, true, 4, c.now
		})
		if v, reason := b.judge(t); reason != refusal.TCBStatus || v.Relaunch != c.want {
			t.Errorf("%s: %q, relaunch %t, want %t", name, reason, v.Relaunch, c.want)
		}
	}
}

// harmless reports whether two quotes mean the same: text between the PEM blocks, their line
// ends, and the root that a chain brings along play no part.
func harmless(a, b []byte) bool {
	x, err1 := quote.Parse(a)
	y, err2 := quote.Parse(b)
	if err1 != nil || err2 != nil {
		return false
	}
	return bytes.Equal(evidencetest.Below(x.PCKChain), evidencetest.Below(y.PCKChain))
}

// TestEveryLength: no length in a quote leads beyond it.
func TestEveryLength(t *testing.T) {
	b := newBench(t, true)
	for _, version := range []uint16{4, 5} {
		good := b.platform.Quote(t, func(q *evidencetest.QuoteParts) { q.Version, q.Is15 = version, version == 5 })
		data := 48 + 584
		if version == 5 {
			data = 54 + 648
		}
		auth := data + 4 + 128 + 6 + 384 + 64
		chain := auth + 2 + int(le.Uint16(good[auth:])) + 2
		for _, f := range []struct{ off, size int }{{data, 4}, {data + 4 + 128 + 2, 4}, {auth, 2}, {chain, 4}} {
			is := uint64(le.Uint16(good[f.off:]))
			if f.size == 4 {
				is = uint64(le.Uint32(good[f.off:]))
			}
			for _, v := range []uint64{0, 1, is - 1, is + 1, is * 2, 0x7fff, 0xffff, 0x7fffffff, 0xffffffff} {
				bad := slices.Clone(good)
				if f.size == 4 {
					le.PutUint32(bad[f.off:], uint32(v))
				} else {
					le.PutUint16(bad[f.off:], uint16(v))
				}
				if bytes.Equal(bad, good) {
					continue
				}
				if _, err := b.verify(t, bad); refusal.Of(err) == nil && !harmless(good, bad) {
					t.Errorf("version %d, length at %d is %d: %v", version, f.off, v, err)
				}
			}
		}
	}
	if _, err := quote.Parse(make([]byte, quote.MaxSize+1)); refusal.Of(err).Reason != refusal.QuoteSize {
		t.Errorf("a quote beyond the bound: %v", err)
	}
}

// TestCollateralIsExact: each text of collateral is covered by a signature, or not needed.
func TestCollateralIsExact(t *testing.T) {
	b := newBench(t, true)
	raw, good := b.platform.Quote(t), b.collateral
	var fields map[string]string
	if err := json.Unmarshal(good, &fields); err != nil {
		t.Fatal(err)
	}
	for name, text := range fields {
		for _, change := range []func(string) string{
			func(string) string { return "" },
			func(s string) string { return s[:len(s)/2] },
			func(s string) string { return s[:len(s)/2] + "0" + s[len(s)/2+1:] },
			func(s string) string { return s[:len(s)/3] + "1" + s[len(s)/3+1:] },
		} {
			fields[name] = change(text)
			if fields[name] == text {
				continue
			}
			var err error
			if b.collateral, err = json.Marshal(fields); err != nil {
				t.Fatal(err)
			}
			_, err = b.verify(t, raw)
			// Of a chain the signer alone is needed: the root is compiled in.
			needed := name != "pck_crl_issuer_chain" &&
				!(strings.HasSuffix(name, "_chain") && bytes.Equal(signerOf(fields[name]), signerOf(text)))
			if needed && refusal.Of(err) == nil || name == "pck_crl_issuer_chain" && err != nil {
				t.Errorf("%s was changed: %v", name, err)
			}
		}
		fields[name] = text
	}
	for name, bad := range map[string]string{"empty": "", "no object": "[]", "another object": `{"x": 1}`} {
		if _, err := collateral.Parse([]byte(bad)); err == nil {
			t.Errorf("%s is collateral", name)
		}
	}
}

func signerOf(chain string) []byte {
	if block, _ := pem.Decode([]byte(chain)); block != nil {
		return block.Bytes
	}
	return nil
}

func FuzzParse(f *testing.F) {
	b := newBench(f, true)
	f.Add(b.platform.Quote(f))
	f.Add(b.platform.Quote(f, func(q *evidencetest.QuoteParts) { q.Version, q.Is15 = 5, true }))
	f.Fuzz(func(t *testing.T, raw []byte) { _, _ = b.verify(t, raw) })
}

func FuzzCollateral(f *testing.F) {
	b := newBench(f, true)
	raw := b.platform.Quote(f)
	f.Add(b.collateral)
	f.Fuzz(func(t *testing.T, text []byte) {
		b.collateral = text
		_, _ = b.verify(t, raw)
	})
}

// TestOtherLists: what any genuine list of the root has revoked is revoked, whichever list is
// the one that is judged by.
func TestOtherLists(t *testing.T) {
	b := newBench(t, true)
	q, err := quote.Parse(b.platform.Quote(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		serial int64
		want   refusal.Reason
	}{
		"signer of TCB info": {evidencetest.SerialTCBSigning, refusal.Revoked},
		"platform authority": {evidencetest.SerialPlatformCA, refusal.Revoked},
		"something else":     {999, ""},
	} {
		own, err := collateral.Parse(b.collateral)
		if err != nil {
			t.Fatal(err)
		}
		other, err := collateral.Parse(b.intel.Collateral(t, authority(true), func(p *evidencetest.Parts) {
			p.RevokedByRoot = []int64{c.serial}
		}))
		if err != nil {
			t.Fatal(err)
		}
		list, err := x509.ParseRevocationList(other.RootCRL)
		if err != nil {
			t.Fatal(err)
		}
		own.Others = append(own.Others, list)
		_, err = (&quote.Evidence{Quote: q, Root: b.root, Collateral: own}).Verify(b.at, &b.policy)
		var got refusal.Reason
		if r := refusal.Of(err); r != nil {
			got = r.Reason
		}
		if got != c.want {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
