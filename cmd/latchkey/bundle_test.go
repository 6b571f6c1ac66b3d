//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
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
	bad := bytes.Clone(j.ek.Cert.Raw)
	bad[len(bad)-1] ^= 1 // in its signature
	j.write("bad.der", string(bad))
	for line, want := range map[string]string{
		"bundle add bundle.json bad.der --trust-root roots.pem":         `no part verifies`,
		"bundle add bundle.json bad.der crl.der --trust-root roots.pem": `1 of 2 do not; the others are kept`,
		"bundle add bundle.json vcek.der":                               `\(chain\)[^!]*no part verifies`,
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
	code, out, _ = j.try("bundle check bundle.json --trust-root roots.pem --as-of 2020-01-01")
	matches(t, "too early", out, `not-yet`)
	if code != cli.ExitRefused {
		t.Errorf("parts that are not valid yet: code %d", code)
	}
}

// TestBundleFiles: what "bundle add" does with the file.
func TestBundleFiles(t *testing.T) {
	j := newJudge(t)
	before := j.read("bundle.json")
	add := func(name string) string { return "bundle add " + name + " vcek.der --trust-root roots.pem" }
	j.refused("bundle add new.json vcek.der", cli.ExitRefused, `no part verifies: nothing is kept`)
	if _, err := os.Lstat("new.json"); err == nil {
		t.Error("a bundle is left behind that nothing is in")
	}
	j.refused("bundle add new.json roots.pem", cli.ExitUsage, `only vouch`)
	j.refused(add("-"), cli.ExitUsage, `must be a file`)
	j.refused(add("nowhere/b.json"), cli.ExitUsage, `nowhere`)
	j.refused("bundle add new.json vcek.der --trust-root=", cli.ExitUsage, `--trust-root: is empty`)
	j.write("empty.json", "")
	j.run(add("empty.json"))

	// A link and a mode stay as they are.
	j.write("shared.json", string(before))
	if err := errors.Join(os.Chmod("shared.json", 0o664), os.Symlink("shared.json", "link.json"),
		os.Symlink("nothing.json", "lost.json")); err != nil {
		t.Fatal(err)
	}
	j.write("e.der", string(j.amd.EndorsedFor(t, kds.TCB{SNP: 9}).Cert.Raw))
	out, _ := j.run("bundle add link.json e.der --trust-root roots.pem --json")
	matches(t, "summary", out, `"schema": "latchkey.bundle/1"`, `"parts": 7`, `"new": 1`, `"failed": \[\]`)
	if info, err := os.Lstat("link.json"); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link was replaced: %v", err)
	}
	if info, err := os.Lstat("shared.json"); err != nil || info.Mode().Perm() != 0o664 {
		t.Errorf("the mode changed to %v, %v", info.Mode(), err)
	}
	answer, err := collateral.Parse(j.read("collateral.json"))
	if err != nil {
		t.Fatal(err)
	}
	j.write("tcb.json", fmt.Sprintf(`{"tcbInfo":%s,"signature":"%x"}`, answer.TCBInfo, answer.TCBInfoSig))
	j.refused(
		"bundle add alone.json tcb.json --trust-root roots.pem",
		cli.ExitRefused,
		`vouch for it are missing\n *hint: [^!]*curl -i`,
	)
	j.write("page", "<!DOCTYPE html><p>Too many requests")
	j.refused("bundle add alone.json page", cli.ExitUsage, `web page`)
	j.write("cut.der", string(j.read("vcek.der")[:900]))
	j.refused("bundle add alone.json cut.der", cli.ExitUsage, `cut off`)
	j.refused("bundle fetch nowhere/b.json --report report.bin", cli.ExitUsage, `no directory nowhere`)
	j.refused(add("lost.json"), cli.ExitUsage, `symbolic link to a file that does not exist`)
	code, out, errs := j.try("bundle add link.json vcek.der --json")
	matches(t, "summary of a refusal", out, `"reason": "chain"`, `"kind": "amd-endorsement"`)
	matches(t, "what is in it", errs, `warning: link.json: 7 parts of it do not verify`)
	if code != cli.ExitRefused {
		t.Errorf("code %d", code)
	}
}

// TestBundleTogether: commands that are at work at once lose nothing, also where none has
// created the bundle yet, and where some have nothing for it.
func TestBundleTogether(t *testing.T) {
	j := newJudge(t)
	j.write("b2.json", string(j.read("bundle.json")))
	for i := range 6 {
		j.write(fmt.Sprintf("e%d.der", i), string(j.amd.EndorsedFor(t, kds.TCB{SNP: uint8(i + 1)}).Cert.Raw))
	}
	test, err := readRoots("roots.pem")
	if err != nil {
		t.Fatal(err)
	}
	keep := func(name, file string, roots bundle.Roots) (failed int) {
		f, err := recogniseFile(file)
		if err != nil {
			t.Error(err)
			return 0
		}
		s := &cli.IO{In: strings.NewReader(""), Out: &bytes.Buffer{}, Err: &bytes.Buffer{}, Name: "latchkey"}
		k := &keeping{Bundle: name}
		if err := k.keep(s, []source{{file, f}}, []bundle.Roots{roots}); err != nil {
			t.Errorf("%s into %s: %v", file, name, err)
		}
		return len(k.Failed)
	}
	for name, want := range map[string]int{"b2.json": 12, "b3.json": 6} {
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				if keep(name, fmt.Sprintf("e%d.der", i), *test) != 0 {
					t.Errorf("%s: part %d is refused", name, i)
				}
			})
			wg.Go(func() { // has nothing, and may create the file for it
				if keep(name, "vcek.der", bundle.Genuine()) != 1 {
					t.Errorf("%s: what does not verify is kept", name)
				}
			})
		}
		wg.Wait()
		b, err := bundle.Parse(j.read(name))
		if err != nil || len(b.Parts) != want {
			t.Errorf("%s: %v, want %d parts: an addition is lost", name, err, want)
		}
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
			list, _, err := reportNeeds(e, "")
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
			k := &keeping{Bundle: "fetched.json"}
			got := f.all(t.Context(), s, append(list, more...), k)
			test, err := readRoots("roots.pem")
			if err != nil {
				t.Fatal(err)
			}
			_ = os.Remove("fetched.json")
			err = k.keep(s, got, []bundle.Roots{bundle.Genuine(), *test})
			if err != nil || len(k.Failed) > 0 != x.failed || !strings.Contains(errs.String(), x.says) {
				t.Errorf("%v: %s\nwant it to fail: %t, and to say %q", err, errs.String(), x.failed, x.says)
			}
			b, err := openBundle("fetched.json")
			if err != nil || len(b.Parts) != x.parts {
				t.Errorf("%d parts, %v, want %d", len(b.Parts), err, x.parts)
			}
		})
	}
}

// TestFetchEnds: a fetch ends in time, says what it did not try, and keeps what it has.
func TestFetchEnds(t *testing.T) {
	j := newJudge(t)
	ctx, cancel := context.WithCancel(t.Context())
	server := httptest.NewServer(&vendors{answer: func(w http.ResponseWriter, r *http.Request, n int) {
		if n == 2 { // the second answer does not come: it is interrupted here
			cancel()
			<-r.Context().Done()
			return
		}
		_, _ = w.Write(j.read("vcek.der"))
	}})
	defer server.Close()
	var errs bytes.Buffer
	s := &cli.IO{In: strings.NewReader(""), Out: &bytes.Buffer{}, Err: &errs, Name: "latchkey"}
	f := newFetcher(s)
	f.pause = 0
	f.at = func(string) string { return server.URL }
	k := &keeping{Bundle: "new.json"}
	got := f.all(ctx, s, []need{
		{
			Kind: bundle.Endorsement,
			What: "first",
		}, {Kind: bundle.AMDCRL, What: "second"}, {Kind: bundle.PCKCRL, What: "third"},
	}, k)
	if len(got) != 1 || len(k.Failed) != 2 {
		t.Errorf("%d had, %d failed, want 1 and 2: %s", len(got), len(k.Failed), errs.String())
	}
	matches(t, "interrupted", errs.String(), `second: interrupted`, `third: interrupted`)

	errs.Reset()
	f.retry = time.Hour // nothing waits for a name that does not exist
	f.at = func(string) string { return "http://nothing.invalid/" }
	if got := f.all(t.Context(), s, []need{{Kind: bundle.AMDCRL, What: "list", URL: "address"}}, k); got != nil {
		t.Error("a server that does not exist answers")
	}
	matches(t, "unknown host", errs.String(), `list: [^"]*nothing\.invalid`, `asked for at address`)
	j.refused("bundle fetch new.json --report report.bin --timeout 0s", cli.ExitUsage, `must be above 0`)
	j.refused("bundle fetch new.json --report report.bin --timeout 1ns", cli.ExitFailure, `no time left`)
	if _, err := os.Lstat("new.json"); err == nil {
		t.Error("a bundle is left behind that nothing is in")
	}
}

// TestProduct: reports of version 2 do not name their processor, so that the owner has to.
func TestProduct(t *testing.T) {
	j := newJudge(t)
	old := j.ek.Report(t, func(b []byte) { b[0] = 2; clear(b[0x188:0x18b]) })
	j.write("old.bin", string(old))
	j.refused(
		"bundle urls --report old.bin",
		cli.ExitUsage,
		`does not name its processor[^!]*--product milan\|genoa\|turin`,
	)
	j.refused("bundle urls --report old.bin --product rome", cli.ExitUsage, `rome`)
	j.refused("bundle urls --report report.bin --product genoa", cli.ExitUsage, `is of the line Milan, not Genoa`)
	out, _ := j.run("bundle urls --report old.bin --product milan")
	matches(t, "urls", out, `/vcek/v1/Milan/[0-9a-f]{128}\?`, `/vcek/v1/Milan/crl`)
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
	d.refused("bundle add b.json cek.cert", cli.ExitRefused, `no part verifies`)
	_, errs := d.run("bundle add b.json cek.cert --trust-root root.pem")
	matches(t, "add", errs, `1 part, 1 of them new`)
	out, _ := d.run("bundle check b.json --trust-root root.pem")
	matches(t, "check", out, `amd-cek +valid \(emulated\) +- +signed CEK`)
	d.refused("session --platform platform.json --trust-root root.pem --out .", cli.ExitRefused, `--cek`)
	d.run("session --platform platform.json --trust-root root.pem --out . --bundle b.json")
	out, _ = d.run("platform show platform.json --trust-root root.pem --bundle b.json")
	if strings.Contains(out, "NOT") {
		t.Errorf("the platform does not verify with its certificate from the bundle: %s", out)
	}
}
