//go:build linux

package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/evidence/bundle"
	"github.com/vmlatch/vmlatch/firmware/evidence/evidencetest"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
)

// TestBundleCommands: bundles are written as a whole or not at all, and what does not verify is
// not kept.
func TestBundleCommands(t *testing.T) {
	j := newJudge(t)
	before := j.read("bundle.json")
	_, errs := j.run("bundle add bundle.json vcek.der crl.der --trust-root roots.pem")
	matches(t, "again", errs, `6 parts, 0 of them new`)
	j.write("bad.der", string(append(bytes.Clone(j.ek.Cert.Raw[:len(j.ek.Cert.Raw)-1]), 0)))
	for line, want := range map[string]string{
		"bundle add bundle.json bad.der --trust-root roots.pem": `not all parts verify`,
		"bundle add bundle.json vcek.der":                       `\(chain\)[^!]*not all parts verify`,
	} {
		j.refused(line, cli.ExitRefused, want)
	}
	j.refused("bundle add bundle.json passphrase", cli.ExitUsage, `nothing for a bundle`)
	j.refused("bundle add vcek.der crl.der", cli.ExitUsage, `not a bundle`)
	j.refused("bundle add bundle.json", cli.ExitUsage, `FILE is missing`)
	j.refused("bundle check nothing.json", cli.ExitUsage, `nothing.json`)
	j.refused("bundle urls", cli.ExitUsage, `--report, --quote or --platform`)
	j.refused("bundle keep", cli.ExitUsage, `action`)
	if !bytes.Equal(before, j.read("bundle.json")) {
		t.Error("commands that fail change the bundle")
	}
	out, _ := j.run("bundle check bundle.json --trust-root roots.pem" + at)
	matches(t, "check", out, `amd-crl +valid \(emulated\) +2026-07-01`)
	code, out, _ := j.try("bundle check bundle.json --trust-root roots.pem --as-of 2026-06-15")
	matches(t, "soon", out, `intel-tcb-info +expires-soon`)
	if code != cli.ExitOK {
		t.Errorf("what expires soon: code %d", code)
	}
	code, out, errs = j.try("bundle check bundle.json --trust-root roots.pem --as-of 2027-06-15 --json")
	matches(t, "expired", out, `"state": "expired"`)
	if code != cli.ExitRefused {
		t.Errorf("expired parts: code %d: %s", code, errs)
	}
	code, out, _ = j.try("bundle check bundle.json" + at)
	matches(t, "another root", out, `unverified`)
	if code != cli.ExitRefused {
		t.Errorf("unverified parts: code %d", code)
	}
	out, _ = j.run("bundle urls --quote quote.bin --early")
	matches(t, "urls", out, `fmspc=90c06f000000&update=early`)
	out, _ = j.run("bundle urls --platform platform.json --json")
	matches(t, "urls", out, `"amd-cek"`)
	// Two that are at work at once lose nothing.
	var wg sync.WaitGroup
	j.write("b2.json", string(before))
	for i := range 6 {
		j.write(fmt.Sprintf("e%d.der", i), string(j.amd.EndorsedFor(t, kds.TCB{SNP: uint8(i + 1)}).Cert.Raw))
	}
	for i := range 6 {
		wg.Go(func() {
			if code, _, errs := j.try(fmt.Sprintf("bundle add b2.json e%d.der --trust-root roots.pem",
				i)); code != cli.ExitOK {
				t.Errorf("add: code %d: %s", code, errs)
			}
		})
	}
	wg.Wait()
	b, err := bundle.Parse(j.read("b2.json"))
	if err != nil || len(b.Parts) != 12 {
		t.Errorf("%d parts, %v, want 12: an addition is lost", len(b.Parts), err)
	}
}

// vendors plays AMD's and Intel's servers.
type vendors struct {
	mu     sync.Mutex
	asked  []string
	answer func(w http.ResponseWriter, r *http.Request, n int)
}

func (v *vendors) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	v.asked = append(v.asked, r.URL.String())
	n := len(v.asked)
	v.mu.Unlock()
	v.answer(w, r, n)
}

// TestFetch: what vendors' servers do to clients.
func TestFetch(t *testing.T) {
	j := newJudge(t)
	c, err := collateral.Parse(j.read("collateral.json"))
	if err != nil {
		t.Fatal(err)
	}
	good := func(w http.ResponseWriter, r *http.Request) {
		part := func(key string, text, sig []byte) {
			_, _ = fmt.Fprintf(w, `{%q:%s,"signature":"%x"}`, key, text, sig)
		}
		switch p := r.URL.Path; {
		case strings.HasPrefix(p, "/vcek/v1/Milan/crl"):
			_, _ = w.Write(j.read("crl.der"))
		case strings.HasPrefix(p, "/vcek/"):
			_, _ = w.Write(j.read("vcek.der"))
		case strings.HasSuffix(p, ".der"):
			_, _ = w.Write(c.RootCRL)
		case strings.HasSuffix(p, "pckcrl"):
			w.Header().Set("SGX-PCK-CRL-Issuer-Chain", url.PathEscape(string(c.PCKCRLChain)))
			_, _ = w.Write(c.PCKCRL)
		case strings.HasSuffix(p, "/tcb"):
			w.Header().Set("TCB-Info-Issuer-Chain", url.PathEscape(string(c.TCBInfoChain)))
			part("tcbInfo", c.TCBInfo, c.TCBInfoSig)
		case strings.HasSuffix(p, "identity"):
			w.Header().Set("SGX-Enclave-Identity-Issuer-Chain", url.PathEscape(string(c.QEChain)))
			part("enclaveIdentity", c.QE, c.QESig)
		default:
			http.NotFound(w, r)
		}
	}
	other := evidencetest.NewAMD(t, kds.Milan, 1).VCEK(t).Cert.Raw
	for name, x := range map[string]struct {
		answer func(w http.ResponseWriter, r *http.Request, n int)
		parts  int // that are kept
		failed bool
		says   string
	}{
		"right answers": {func(w http.ResponseWriter, r *http.Request, _ int) { good(w, r) }, 6, false, ""},
		"busy at first": {func(w http.ResponseWriter, r *http.Request, n int) {
			if n == 1 {
				w.WriteHeader(http.StatusTooManyRequests)
				return
			}
			good(w, r)
		}, 6, false, "trying again"},
		"busy, with a time": {func(w http.ResponseWriter, r *http.Request, n int) {
			if n <= 2 {
				w.Header().Set("Retry-After", "0")
				w.WriteHeader(http.StatusTooManyRequests)
				return
			}
			good(w, r)
		}, 6, false, "trying again in 0s"},
		"always busy": {func(w http.ResponseWriter, r *http.Request,
			_ int,
		) {
			w.WriteHeader(http.StatusTooManyRequests)
		}, 0, true, "429"},
		"not there": {func(w http.ResponseWriter, r *http.Request, _ int) { http.NotFound(w, r) }, 0, true, "404"},
		"cut off": {func(w http.ResponseWriter, r *http.Request, n int) {
			if strings.HasPrefix(r.URL.Path, "/vcek/v1/Milan/3") {
				w.Header().Set("Content-Length", "5000")
				_, _ = w.Write([]byte("MII"))
				return
			}
			good(w, r)
		}, 5, true, "cut off"},
		"wrong bytes": {func(w http.ResponseWriter, r *http.Request, _ int) {
			if strings.HasPrefix(r.URL.Path, "/vcek/v1/Milan/3") {
				_, _ = w.Write([]byte("<html>Welcome to the hotel</html>"))
				return
			}
			good(w, r)
		}, 5, true, "something else"},
		"of another chip": {func(w http.ResponseWriter, r *http.Request, _ int) {
			if strings.HasPrefix(r.URL.Path, "/vcek/v1/Milan/3") {
				_, _ = w.Write(other)
				return
			}
			good(w, r)
		}, 5, true, `(chain)`},
		"without chains": {func(w http.ResponseWriter, r *http.Request, _ int) {
			good(struct{ http.ResponseWriter }{headless{w}}, r)
		}, 3, true, "vouch"},
		"leads elsewhere": {func(w http.ResponseWriter, r *http.Request, _ int) {
			http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
		}, 0, true, "not followed"},
		"leads in circles": {func(w http.ResponseWriter, r *http.Request, _ int) {
			http.Redirect(w, r, r.URL.String(), http.StatusFound)
		}, 0, true, "not followed"},
		"endless": {func(w http.ResponseWriter, r *http.Request, _ int) {
			for range bundle.MaxSize>>10 + 2 {
				_, _ = w.Write(make([]byte, 1<<10))
			}
		}, 0, true, "more than"},
		"down": {
			func(w http.ResponseWriter, r *http.Request, _ int) { w.WriteHeader(http.StatusBadGateway) },
			0, true, "502",
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(&vendors{answer: x.answer})
			defer server.Close()
			var errs bytes.Buffer
			s := &cli.IO{In: strings.NewReader(""), Out: &bytes.Buffer{}, Err: &errs, Name: "latchkey"}
			f := newFetcher(s)
			f.pause, f.retry = 0, time.Millisecond
			f.at = func(u string) string {
				x, err := url.Parse(u)
				if err != nil {
					t.Fatal(err)
				}
				return server.URL + x.RequestURI()
			}
			e, err := evidenceOf(s, "report.bin")
			if err != nil {
				t.Fatal(err)
			}
			list, _, err := reportNeeds(e)
			if err != nil {
				t.Fatal(err)
			}
			if e, err = evidenceOf(s, "quote.bin"); err != nil {
				t.Fatal(err)
			}
			more, err := quoteNeeds(e, false)
			if err != nil {
				t.Fatal(err)
			}
			got, failed := f.all(t.Context(), s, append(list, more...))
			test, err := readRoots("roots.pem")
			if err != nil {
				t.Fatal(err)
			}
			_ = os.Remove("fetched.json")
			err = keepFetched(s, "fetched.json", got, []bundle.Roots{bundle.Genuine(), *test}, failed)
			if (err != nil) != x.failed || !strings.Contains(errs.String(), x.says) {
				t.Errorf("%v: %s\nwant it to fail: %t, and to say %q", err, errs.String(), x.failed, x.says)
			}
			b, err := openBundle("fetched.json")
			if err != nil || len(b.Parts) != x.parts {
				t.Errorf("%d parts, %v, want %d", len(b.Parts), err, x.parts)
			}
		})
	}
}

// headless drops the chains that Intel's service gives in headers.
type headless struct{ http.ResponseWriter }

func (headless) Header() http.Header { return http.Header{} }

// TestRenewals: a bundle knows what would bring it up to date.
func TestRenewals(t *testing.T) {
	j := newJudge(t)
	b, err := readBundle("bundle.json")
	if err != nil {
		t.Fatal(err)
	}
	var urls []string
	for _, n := range renewals(b, false) {
		urls = append(urls, n.URL)
	}
	for _, want := range []string{
		"/vcek/v1/Milan/crl", "fmspc=90c06f000000", "ca=platform", "qe/identity",
		"IntelSGXRootCA.der",
	} {
		if !strings.Contains(strings.Join(urls, "\n"), want) {
			t.Errorf("%q, want %s among them", urls, want)
		}
	}
	if list := renewals(bundle.New(), false); len(list) != 0 {
		t.Errorf("an empty bundle needs %v", list)
	}
	j.refused("bundle fetch new.json", cli.ExitUsage, `nothing to renew`)
}

// TestCEKFromBundle: the signed certificate of an SEV chip is kept in a bundle as well, and a
// session takes it from there.
func TestCEKFromBundle(t *testing.T) {
	d := newDesk(t)
	d.refused("bundle add b.json cek.cert", cli.ExitRefused, `not all parts verify`)
	_, errs := d.run("bundle add b.json cek.cert --trust-root root.pem")
	matches(t, "add", errs, `1 parts, 1 of them new`)
	out, _ := d.run("bundle check b.json --trust-root root.pem")
	matches(t, "check", out, `amd-cek +valid \(emulated\) +- +signed CEK`)
	d.refused("session --platform platform.json --trust-root root.pem --out .", cli.ExitRefused, `--cek`)
	d.run("session --platform platform.json --trust-root root.pem --out . --bundle b.json")
	out, _ = d.run("platform show platform.json --trust-root root.pem --bundle b.json")
	if strings.Contains(out, "NOT") {
		t.Errorf("the platform does not verify with its certificate from the bundle: %s", out)
	}
}
