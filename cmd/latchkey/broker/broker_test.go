//go:build linux

package broker

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence/bundle"
	"github.com/vmlatch/vmlatch/firmware/evidence/evidencetest"
	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
)

// world is an owner's broker, with an AMD and an Intel of its own as the vendors.
type world struct {
	t        testing.TB
	dir      string
	amd      *evidencetest.AMD
	ek       *evidencetest.Endorsed
	intel    *evidencetest.Intel
	platform *evidencetest.Platform
	key      ed25519.PrivateKey
	at       atomic.Int64 // the clock
	trusts   bool         // the key is for guests that trust their hosts
	*Broker
}

const name = "appliance-emulated"

// demands is a policy for the guest of evidencetest.
func demands(releases string) string {
	return fmt.Sprintf(`schema = "latch-policy/1"
name = %q
kem = ["x25519"]
[sev-snp]
digests = [%q]
chips = [%q]
host-acpi = "accept"
policy = ["smt"]
[tdx]
mrtd = [%q]
rtmr1 = [%q]
rtmr2 = [%q]
rtmr0 = "exact:%s"
chips = [%q]
accept-tcb = ["UpToDate"]
[emulated]
root = "roots.pem"
%s`, name, digest(0x11), hex.EncodeToString(evidencetest.HWID(kds.Milan)), digest(0x21), digest(0x23), digest(0x24),
		digest(0x22), hex.EncodeToString(evidencetest.PPID()), releases)
}

func digest(b byte) string { return strings.Repeat(fmt.Sprintf("%02x", b), 48) }

// secret is a release of the policy.
func secret(name, mode string, more ...string) string {
	return fmt.Sprintf(
		"[[release]]\nsecret = %q\nfile = %q\nmode = %q\n%s\n",
		name,
		name,
		mode,
		strings.Join(more, "\n"),
	)
}

func newWorld(t testing.TB, releases string) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), amd: evidencetest.NewAMD(t, kds.Milan, 0), intel: evidencetest.NewIntel(t)}
	w.ek, w.platform = w.amd.VCEK(t), w.intel.Platform(t, true)
	w.at.Store(evidencetest.AsOf().UnixNano())
	_, w.key, _ = ed25519.GenerateKey(rand.Reader)
	for _, s := range []string{"disk", "api", "rare", "asked"} {
		w.write(s, "value of "+s)
	}
	w.write("roots.pem", string(w.amd.RootPEM())+string(w.intel.RootPEM()))
	w.write("p.toml", demands(releases))
	w.bundle("bundle.json", w.amd.CRL(t), w.intel.Collateral(t))
	w.start()
	return w
}

func (w *world) write(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// bundle keeps parts in a bundle.
func (w *world) bundle(name string, parts ...[]byte) {
	w.t.Helper()
	b := bundle.New()
	roots, err := bundle.ParseRoots("roots.pem", w.read("roots.pem"))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, text := range append(parts, w.ek.Cert.Raw) {
		found, err := bundle.Recognise(text)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, p := range found.Parts {
			if _, err := b.AddWithChains(p, found.Chains, *roots); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	text, err := b.Bytes()
	if err != nil {
		w.t.Fatal(err)
	}
	w.write(name, string(text))
}

func (w *world) read(name string) []byte {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.dir, name))
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

func (w *world) now() time.Time { return time.Unix(0, w.at.Load()).UTC() }

func (w *world) pass(d time.Duration) { w.at.Add(int64(d)) }

func (w *world) rules() (*Rules, error) {
	k := exchange.Key(w.key.Public().(ed25519.PublicKey))
	return Load([]string{filepath.Join(w.dir, "p.toml")}, filepath.Join(w.dir, "bundle.json"), k)
}

func (w *world) config() Config {
	w.t.Helper()
	r, err := w.rules()
	if err != nil {
		w.t.Fatal(err)
	}
	return Config{
		Keys: []ed25519.PrivateKey{w.key}, Rules: r, State: filepath.Join(w.dir, "state"), Now: w.now,
		Log: func(format string, args ...any) { w.t.Logf(format, args...) },
	}
}

// start starts the broker, or starts it again.
func (w *world) start() {
	w.t.Helper()
	b, err := New(w.config())
	if err != nil {
		w.t.Fatal(err)
	}
	w.Broker = b
	w.t.Cleanup(func() { _ = b.Close() })
}

func (w *world) restart() {
	w.t.Helper()
	if err := w.Close(); err != nil {
		w.t.Fatal(err)
	}
	w.start()
}

// guest is a launch with its agent.
type guest struct {
	w      *world
	launch byte // makes the REPORT_ID
	*exchange.Agent
	technology string
	change     []func([]byte)                   // of the report
	quoted     []func(*evidencetest.QuoteParts) // of the quote
	table      []byte
}

var seeds atomic.Uint64

func (w *world) guest(launch byte, technology string, secrets ...string) *guest {
	w.t.Helper()
	if secrets == nil {
		secrets = []string{"disk"}
	}
	seed := make([]byte, 32)
	_, _ = rand.Read(seed)
	a, err := exchange.NewAgent(exchange.AgentConfig{
		Broker: w.Key(), Name: name, Technology: technology, Secrets: secrets, KEM: exchange.X25519, Seed: seed,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return &guest{w: w, launch: launch, Agent: a, technology: technology}
}

// request goes through the exchange up to the request.
func (g *guest) request() []byte {
	t := g.w.t
	t.Helper()
	var hello [16]byte
	_, _ = rand.Read(hello[:])
	answer := g.w.Answer(context.Background(), g.Ask(hello))
	data, err := g.Agent.Challenge(answer)
	if err != nil {
		t.Fatalf("%s: %v", answer, err)
	}
	line, err := g.Request(g.evidence(data), g.table, nil)
	if err != nil {
		t.Fatal(err)
	}
	return line
}

const (
	offReportData  = 0x50
	offMeasurement = 0x90
	offReportID    = 0x140
	offPolicy      = 0x08
	offVMPL        = 0x30
	offChip        = 0x1a0
)

func (g *guest) evidence(data [64]byte) []byte {
	if g.technology == exchange.TDX {
		return g.w.platform.Quote(g.w.t, append([]func(*evidencetest.QuoteParts){func(q *evidencetest.QuoteParts) {
			copy(q.Body[evidencetest.OffReportData:], data[:])
		}}, g.quoted...)...)
	}
	return g.w.ek.Report(g.w.t, append([]func([]byte){func(b []byte) {
		copy(b[offReportData:], data[:])
		copy(b[offReportID:], bytes.Repeat([]byte{g.launch}, 32))
	}}, g.change...)...)
}

// ask asks the broker and reads its answer.
func (g *guest) ask() *exchange.Answer {
	g.w.t.Helper()
	line := g.w.Answer(context.Background(), g.request())
	a, err := g.Agent.Answer(line)
	if err != nil {
		g.w.t.Fatalf("%.200s: %v", line, err)
	}
	return a
}

// got is what came of it: "released", "pending", or the reason of a denial.
func got(a *exchange.Answer) string {
	switch {
	case a.Denial != nil:
		return a.Denial.Reason
	case a.Pending != nil:
		return "pending"
	}
	return "released"
}

func (w *world) want(g *guest, want string) *exchange.Answer {
	w.t.Helper()
	a := g.ask()
	if got(a) != want {
		w.t.Errorf("launch %d: %s, want %s", g.launch, got(a), want)
	}
	return a
}

// events are those of the audit.
func (w *world) events(kind string) []*Event { return w.eventsOf("state", kind) }

func (w *world) eventsOf(state, kind string) (list []*Event) {
	w.t.Helper()
	f, err := os.Open(filepath.Join(w.dir, state, auditFile))
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	if _, _, err := ReadAudit(f, func(e *Event) error {
		if e.Event == kind {
			list = append(list, e)
		}
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
	return list
}
