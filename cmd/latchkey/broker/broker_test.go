//go:build linux

package broker

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
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
func (w *world) events(kind string) (list []*Event) {
	w.t.Helper()
	f, err := os.Open(filepath.Join(w.dir, "state", auditFile))
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

func TestRelease(t *testing.T) {
	w := newWorld(t, secret("disk", "repeat", `kind = "luks"`, `luks-header = "`+strings.Repeat("ab", 32)+`"`)+
		secret("api", "repeat"))
	for _, technology := range []string{exchange.SNP, exchange.TDX} {
		g := w.guest(1, technology, "disk", "api")
		if technology == exchange.TDX {
			g.quoted = append(g.quoted, closedWith(0))
		}
		a := w.want(g, "released")
		if string(a.Secrets["disk"].Value) != "value of disk" ||
			a.Secrets["disk"].LUKSHeader != strings.Repeat("ab", 32) ||
			string(a.Secrets["api"].Value) != "value of api" ||
			a.Secrets["api"].LUKSHeader != "" {
			t.Errorf("%s: %+v", technology, a.Secrets)
		}
		status := func() exchange.State {
			s, err := exchange.ReadStatus(
				w.Answer(context.Background(), exchange.AskForStatus(g.Statement())), w.Key(), g.Statement(),
			)
			if err != nil {
				t.Fatal(err)
			}
			return s.State
		}
		if s := status(); s != exchange.Released {
			t.Errorf("status %s, want released", s)
		}
		forged := bytes.Replace(a.Receipt, []byte(`"mac":"`), []byte(`"mac":"AAAA`), 1)
		forged = bytes.Replace(forged, a.Receipt[len(a.Receipt)-12:], []byte("AAAAAAAA=\"}\n"), 1)
		w.Answer(context.Background(), forged)
		if s := status(); s != exchange.Released {
			t.Errorf("status %s after a forged receipt, want released", s)
		}
		w.Answer(context.Background(), a.Receipt)
		w.Answer(context.Background(), a.Receipt)
		w.restart() // what was received is still known
		if s := status(); s != exchange.Received {
			t.Errorf("status %s, want received", s)
		}
	}
	if n := len(w.events(evReceipt)); n != 2 {
		t.Errorf("%d receipts in the audit, want 2", n)
	}
	for _, e := range w.events(evRelease) {
		if !e.Emulated || e.Chip == "" || e.Digest == "" || len(e.NotProven) == 0 || e.Policy != name {
			t.Errorf("the audit says %+v", e)
		}
	}
	if text := string(w.read("state/audit.jsonl")) + string(w.read("state/state.json")); strings.Contains(
		text,
		"value of",
	) ||
		strings.Contains(text, hex.EncodeToString([]byte("value of"))) {
		t.Error("a secret is in the state")
	}
}

// closedWith sets RTMR3.
func closedWith(b byte) func(*evidencetest.QuoteParts) {
	return func(q *evidencetest.QuoteParts) {
		copy(q.Body[evidencetest.OffRTMR0+3*48:], bytes.Repeat([]byte{b}, 48))
	}
}

// TestDenials: what each lie is called. After the signature little is told.
func TestDenials(t *testing.T) {
	w := newWorld(t, secret("disk", "repeat"))
	other := w.amd.VCEK(t)
	for i, c := range []struct {
		want   string
		retry  bool
		change func([]byte)
	}{
		{"measurement", false, func(b []byte) { b[offMeasurement]++ }},
		{"debug", false, func(b []byte) { b[offPolicy+2] |= 0x08 }},
		{"policy", false, func(b []byte) { b[offPolicy+2] |= 0x04 }},
		{"policy", false, func(b []byte) { b[offVMPL] = 1 }},
		// Of another purpose; asked for by the host; of another chip.
		{"report-data", false, func(b []byte) { b[offReportData]++ }},
		{"report-data", false, func(b []byte) { clear(b[offReportData : offReportData+64]) }},
		{"certificate-missing", true, func(b []byte) { b[offChip]++ }},
		{reasonChip, false, func(b []byte) { clear(b[offChip : offChip+64]) }}, // a masked one
		{"report-reserved", false, func(b []byte) { b[0x29f] = 1 }},
	} {
		w.pass(coolDown)
		g := w.guest(byte(i+1), exchange.SNP)
		g.change = append(g.change, c.change)
		a := g.ask()
		if got(a) != c.want || a.Denial != nil && a.Denial.Retry != c.retry {
			t.Errorf("case %d: %s (%+v), want %s", i, got(a), a.Denial, c.want)
		}
	}
	w.pass(coolDown)
	g := w.guest(40, exchange.SNP)
	w.ek, other = other, w.ek // another key of the same chip
	w.want(g, "signature")
	w.ek = other
	g = w.guest(41, exchange.TDX)
	g.quoted = append(g.quoted, closedWith(7))
	w.want(g, reasonClosed)
	w.want(w.guest(42, exchange.SNP, "disk", "no-such"), reasonNoSecret)
	g = w.guest(43, exchange.TDX)
	g.quoted = append(g.quoted, func(q *evidencetest.QuoteParts) { q.Body[evidencetest.OffMRTD]++ })
	w.want(g, reasonMeasurement)
	g = w.guest(44, exchange.SNP)
	g.technology = exchange.TDX // evidence of another technology than the statement says
	w.want(g, reasonMalformed)
	for _, e := range w.events(evDeny) {
		if e.Reason == "policy" && e.Detail == "" {
			t.Errorf("the owner's audit does not say why: %+v", e)
		}
	}
	if len(w.events(evRelease)) > 0 {
		t.Error("something was released")
	}
}

// TestLaunchHasKey: code that comes later in a launch has another key, and gets nothing.
func TestLaunchHasKey(t *testing.T) {
	w := newWorld(t, secret("disk", "repeat")+secret("api", "repeat"))
	first := w.guest(1, exchange.SNP)
	w.want(first, "released")
	w.want(w.guest(1, exchange.SNP), reasonLaunchKey)
	w.want(w.guest(1, exchange.SNP, "api"), reasonLaunchKey)
	w.restart()
	w.want(w.guest(1, exchange.SNP), reasonLaunchKey)
	w.want(first, "released") // the same key may ask again: an answer may be lost
	w.want(w.guest(2, exchange.SNP), "released")
}

// TestReplay: a challenge is answered once, in its time, and not after a restart.
func TestReplay(t *testing.T) {
	w := newWorld(t, secret("disk", "repeat"))
	g := w.guest(1, exchange.SNP)
	line := g.request()
	for _, want := range []string{"released", reasonNonce} {
		a, err := g.Agent.Answer(w.Answer(context.Background(), line))
		if err != nil || got(a) != want {
			t.Errorf("%v, %v, want %s", a, err, want)
		}
	}
	g = w.guest(2, exchange.SNP)
	line = g.request()
	w.pass(exchange.Lifetime + time.Second)
	if a, err := g.Agent.Answer(w.Answer(context.Background(), line)); err != nil || got(a) != reasonExpired ||
		!a.Denial.Retry {
		t.Errorf("late: %+v, %v, want %s", a, err, reasonExpired)
	}
	line = g.request()
	w.restart()
	if a, err := g.Agent.Answer(w.Answer(context.Background(), line)); err != nil || got(a) != reasonChallenge ||
		!a.Denial.Retry {
		t.Errorf("after a restart: %+v, %v, want %s", a, err, reasonChallenge)
	}
	// A denial of genuine evidence uses the nonce up, too.
	g.change = append(g.change, func(b []byte) { b[offMeasurement]++ })
	line = g.request()
	for _, want := range []string{"measurement", reasonNonce} {
		a, err := g.Agent.Answer(w.Answer(context.Background(), line))
		if err != nil || got(a) != want {
			t.Errorf("%v, %v, want %s", a, err, want)
		}
	}
}

func TestModes(t *testing.T) {
	w := newWorld(t, secret("disk", "repeat", `max = "2/h"`)+secret("rare", "once")+secret("api", "first-ask")+
		secret("asked", "ask"))
	rare := w.guest(1, exchange.SNP, "rare")
	w.want(rare, "released")
	w.want(rare, "released") // the same launch and key
	w.want(w.guest(2, exchange.SNP, "rare"), reasonOnce)
	w.restart()
	w.want(w.guest(3, exchange.SNP, "rare"), reasonOnce)

	w.want(w.guest(4, exchange.SNP), "released")
	second := w.guest(5, exchange.SNP)
	w.want(second, "released")
	w.want(second, "released") // is not counted again
	a := w.want(w.guest(6, exchange.SNP), reasonMax)
	if !a.Denial.Retry {
		t.Error("a limit is over some time, want retry")
	}
	w.restart()
	w.want(w.guest(6, exchange.SNP), reasonMax)
	w.pass(time.Hour)
	w.want(w.guest(7, exchange.SNP), "released")

	// api: the chip and digest are known by now.
	w.want(w.guest(8, exchange.SNP, "api"), "released")
	w.want(w.guest(9, exchange.TDX, "api"), "pending") // RTMR3 below
}

// TestAsk: an approval is for one launch, key, digest, chip and set of secrets.
func TestAsk(t *testing.T) {
	w := newWorld(t, secret("asked", "ask")+secret("disk", "repeat"))
	g := w.guest(1, exchange.SNP, "asked", "disk")
	n := w.want(g, "pending").Pending.Request
	if again := w.want(g, "pending").Pending.Request; again != n {
		t.Errorf("asked again it is request %d, want %d", again, n)
	}
	waiting := w.Waiting()
	if len(waiting) != 1 || waiting[0].Number != n || waiting[0].Chip == "" ||
		!strings.Contains(strings.Join(waiting[0].Changed, " "), "chip is new") {
		t.Fatalf("waiting: %+v", waiting)
	}
	if err := w.Decide(n+1, true, ""); !errors.Is(err, ErrNoRequest) {
		t.Errorf("an approval of no request: %v, want ErrNoRequest", err)
	}
	if err := w.Decide(n, true, "another approver's"); !errors.Is(err, ErrChanged) {
		t.Errorf("an approval of what was not shown: %v, want ErrChanged", err)
	}
	if err := w.Decide(n, true, waiting[0].Shown()); err != nil {
		t.Fatal(err)
	}
	w.want(w.guest(1, exchange.SNP, "asked"), reasonLaunchKey) // another key of the launch
	w.want(w.guest(9, exchange.SNP, "asked"), "pending")       // another launch: the approval is not for it
	w.want(g, "pending")                                       // whose place it has taken
	n = w.Waiting()[0].Number
	if err := w.Decide(n, true, ""); err != nil {
		t.Fatal(err)
	}
	if a := w.want(g, "released"); len(a.Secrets) != 2 {
		t.Errorf("%d secrets, want 2", len(a.Secrets))
	}
	w.want(g, "released") // again
	other := w.guest(2, exchange.SNP, "asked")
	n2 := w.want(other, "pending").Pending.Request
	if n2 <= n {
		t.Errorf("request %d after %d: a number is used again", n2, n)
	}
	if err := w.Decide(n2, false, ""); err != nil {
		t.Fatal(err)
	}
	if a := w.want(other, reasonPerson); a.Denial.Retry {
		t.Error("a person's no is final")
	}
	// An approval lasts ten minutes, and not over a restart.
	late := w.guest(3, exchange.SNP, "asked")
	n3 := w.want(late, "pending").Pending.Request
	if err := w.Decide(n3, true, ""); err != nil {
		t.Fatal(err)
	}
	w.pass(patience)
	w.want(late, "pending")
	w.restart()
	if n4 := w.want(late, "pending").Pending.Request; n4 <= n3 {
		t.Errorf("request %d after a restart, want more than %d", n4, n3)
	}
	// The retry is judged anew.
	if err := w.Decide(w.Waiting()[0].Number, true, ""); err != nil {
		t.Fatal(err)
	}
	late.change = append(late.change, func(b []byte) { b[offPolicy+2] |= 0x08 })
	w.want(late, reasonDebug)
}

// TestCoolDown: only what proves itself counts, so that no stranger can lock an owner out.
func TestCoolDown(t *testing.T) {
	w := newWorld(t, secret("disk", "repeat"))
	for range 3 * maxDenials {
		g := w.guest(1, exchange.SNP)
		line := g.request()
		w.Answer(context.Background(), bytes.Replace(line, []byte(`"evidence":"A`), []byte(`"evidence":"B`), 1))
		w.Answer(context.Background(), []byte("{\"want\":\"release\"}\n"))
		w.Answer(context.Background(), []byte("GET / HTTP/1.1\r\n"))
	}
	if n := len(w.events(evDeny)); n > 0 {
		t.Errorf("%d lines of the audit about what proves nothing, want 0", n)
	}
	w.want(w.guest(2, exchange.SNP), "released")
	for i := range maxDenials {
		g := w.guest(byte(10+i), exchange.SNP)
		g.change = append(g.change, func(b []byte) { b[offMeasurement]++ })
		w.want(g, "measurement")
	}
	w.want(w.guest(3, exchange.SNP), reasonCoolDown)
	w.pass(coolDown)
	w.want(w.guest(3, exchange.SNP), "released")
	w.pass(time.Minute)
	w.Answer(context.Background(), []byte("{}\n"))
	noise := w.events(evNoise)
	if len(noise) == 0 || noise[0].Counts[reasonMalformed] == 0 {
		t.Errorf("noise: %+v, want a count of it", noise)
	}
}

// TestClock: a broker whose clock is before its last decision judges nothing.
func TestClock(t *testing.T) {
	w := newWorld(t, secret("disk", "repeat"))
	w.want(w.guest(1, exchange.SNP), "released")
	w.pass(-time.Minute)
	if a := w.want(w.guest(2, exchange.SNP), reasonClock); !a.Denial.Retry {
		t.Error("a clock is set right, want retry")
	}
	w.pass(2 * time.Minute)
	w.want(w.guest(2, exchange.SNP), "released")
}

// TestReload: other rules count from then on, and no older bundle does.
func TestReload(t *testing.T) {
	w := newWorld(t, secret("disk", "repeat"))
	w.want(w.guest(1, exchange.SNP), "released")
	w.write("p.toml", strings.Replace(demands(secret("disk", "repeat")), digest(0x11), digest(0x12), 1))
	r, err := w.rules()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Reload(r); err != nil {
		t.Fatal(err)
	}
	w.want(w.guest(1, exchange.SNP), "measurement")
	w.bundle("bundle.json", w.amd.CRL(t), w.intel.Collateral(t, func(p *evidencetest.Parts) {
		p.TCBInfo["tcbEvaluationDataNumber"], p.QE["tcbEvaluationDataNumber"] = 3, 3
	}))
	if r, err = w.rules(); err != nil {
		t.Fatal(err)
	}
	if err := w.Reload(r); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "gone back") {
		t.Errorf("an older bundle: %v, want it refused", err)
	}
	_ = w.Close()
	if _, err := New(w.config()); !errors.Is(err, ErrConfig) {
		t.Errorf("a start with it: %v, want it refused", err)
	}
}

// TestLoadRefused: what cannot be served by is refused before anything is.
func TestLoadRefused(t *testing.T) {
	w := newWorld(t, secret("disk", "repeat"))
	pin := w.Key()
	for want, policies := range map[string][]string{
		"no policy in":      {t.TempDir()},
		"another policy":    {filepath.Join(w.dir, "p.toml"), filepath.Join(w.dir, "p.toml")},
		"no such file":      {filepath.Join(w.dir, "nowhere")},
		"release nothing: ": {w.variant("x.toml", secret("nothing", "repeat"))},
	} {
		if _, err := Load(policies, "", pin); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", policies, err, want)
		}
	}
	genuine := strings.NewReplacer("-emulated", "", "[emulated]\nroot = \"roots.pem\"\n", "").Replace(
		demands(secret("disk", "repeat")))
	w.write("genuine.toml", genuine)
	files := []string{filepath.Join(w.dir, "p.toml"), filepath.Join(w.dir, "genuine.toml")}
	if _, err := Load(files, "", pin); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "same secret") {
		t.Errorf("one secret for emulated and genuine guests: %v, want it refused", err)
	}
	if _, err := New(w.config()); !errors.Is(err, ErrInUse) {
		t.Errorf("a second broker on one state: %v, want ErrInUse", err)
	}
}

func (w *world) variant(name, releases string) string {
	w.write(name, demands(releases))
	return filepath.Join(w.dir, name)
}

// TestDryRun: everything is judged, nothing is given and nothing is written.
func TestDryRun(t *testing.T) {
	w := newWorld(t, secret("disk", "repeat"))
	_ = w.Close()
	c := w.config()
	c.DryRun, c.State = true, filepath.Join(w.dir, "dry")
	b, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	w.Broker = b
	w.want(w.guest(1, exchange.SNP), reasonDryRun)
	g := w.guest(2, exchange.SNP)
	g.change = append(g.change, func(b []byte) { b[offMeasurement]++ })
	w.want(g, "measurement")
}

// TestCommands: a secret may come from a command, which never gets a word from a guest.
func TestCommands(t *testing.T) {
	give := func(command string) string {
		return "[[release]]\nsecret = \"disk\"\nmode = \"repeat\"\n" +
			"command = [\"/bin/sh\", \"-c\", '''" + command + "''']\n"
	}
	w := newWorld(t, give("cat disk; echo -n \" $#\"; env | grep -ci appliance; exit 0"))
	a := w.want(w.guest(1, exchange.SNP), "released")
	if v := string(a.Secrets["disk"].Value); v != "value of disk 00\n" {
		t.Errorf("%q, want what the command printed, and no word of the guest's", v)
	}
	for _, bad := range []string{"exit 1", "true", "head -c 70000 /dev/zero", "sleep 60"} {
		w.write("p.toml", demands(give(bad)))
		r, err := w.rules()
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Reload(r); err != nil {
			t.Fatal(err)
		}
		if bad == "sleep 60" {
			ctx, stop := context.WithTimeout(context.Background(), 100*time.Millisecond)
			defer stop()
			g := w.guest(2, exchange.SNP)
			if a, err := g.Agent.Answer(w.Answer(ctx, g.request())); err != nil || got(a) != reasonUnavailable {
				t.Errorf("%s: %v, %v, want %s", bad, a, err, reasonUnavailable)
			}
			continue
		}
		if a := w.want(w.guest(2, exchange.SNP), reasonUnavailable); !a.Denial.Retry {
			t.Errorf("%s: want retry", bad)
		}
	}
}
