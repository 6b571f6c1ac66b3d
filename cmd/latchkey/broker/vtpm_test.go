//go:build linux

package broker

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/evidence/policy"
	"github.com/vmlatch/vmlatch/firmware/tpm"
	"github.com/vmlatch/vmlatch/firmware/tpm/quote"
	"github.com/vmlatch/vmlatch/firmware/tpm/seal"
	"github.com/vmlatch/vmlatch/firmware/tpm/tpmtest"
)

const trusting = "web-host-trusted"

// trustingPolicy expects what a TPM has after its start, in PCR 4 and 9.
func trustingPolicy(more string) string {
	return fmt.Sprintf(`schema = "latch-policy/1"
name = %q
[vtpm]
keys = ["web.ak"]
pcrs = [4, 9]
expected = "web.pcrs"
%s
%s`, trusting, more, secret("disk", policy.Repeat))
}

// tpmWorld is a broker of guests that trust their hosts, and one guest's TPM.
func tpmWorld(t *testing.T) (*world, *tpm.Conn) {
	w := newWorld(t, secret("disk", policy.Repeat))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	c := tpmtest.Open(t, tpmtest.Start(t))
	w.write("web.ak", enrol(t, c))
	zeros := strings.Repeat("00", 32)
	w.write(
		"web.pcrs",
		"PCR CERTAINTY SHA256\n4 exact "+zeros+"\n9 exact "+zeros+"\n7 exact "+zeros+"\n0 exact "+zeros+
			"\n15 exact "+zeros+"\n",
	)
	w.write("p.toml", trustingPolicy(""))
	w.trusts = true
	return w, c
}

// begin starts the broker, as its key is for, with a state of its own.
func (w *world) begin(state string) error {
	r, err := Load([]string{filepath.Join(w.dir, "p.toml")}, "")
	if err != nil {
		return err
	}
	cfg := w.config()
	cfg.Rules, cfg.State, cfg.HostTrusted = r, filepath.Join(w.dir, state), w.trusts
	if w.Broker, err = New(cfg); err == nil {
		w.t.Cleanup(func() { _ = w.Close() })
	}
	return err
}

// enrol is what an owner knows of a TPM.
func enrol(t *testing.T, c *tpm.Conn) string {
	t.Helper()
	id, err := quote.Read(c)
	if err != nil {
		t.Fatal(err)
	}
	challenge, pending, err := quote.Challenge(rand.Reader, id)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := quote.Activate(c, challenge)
	if err != nil {
		t.Fatal(err)
	}
	ak, err := pending.Check(answer)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(ak)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// byTPM goes through the exchange with a TPM's quote, which may be changed.
func (w *world) byTPM(c *tpm.Conn, change func(*quote.Quote)) *exchange.Answer {
	w.t.Helper()
	a, err := exchange.NewAgent(exchange.AgentConfig{
		Broker: w.Key(), Name: trusting, Technology: exchange.VTPM, Secrets: []string{"disk"},
		Seed: []byte(rand.Text() + rand.Text()),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	var hello [16]byte
	_, _ = rand.Read(hello[:])
	data, err := a.Challenge(w.Answer(context.Background(), a.Ask(hello)))
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := tpm.ParseSelection(eventlog.SHA256, "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15")
	if err != nil {
		w.t.Fatal(err)
	}
	q, err := quote.Make(c, data[:], s, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	if change != nil {
		change(q)
	}
	b, err := json.Marshal(q)
	if err != nil {
		w.t.Fatal(err)
	}
	line, err := a.Request(b, nil, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	answer, err := a.Answer(w.Answer(context.Background(), line))
	if err != nil {
		w.t.Fatal(err)
	}
	return answer
}

// TestHostTrusted: a guest that trusts its host gets its secret by its TPM's quote, once it has
// booted what is expected and until it closes; all that is said of it says whom it trusts.
func TestHostTrusted(t *testing.T) {
	w, c := tpmWorld(t)
	if err := w.begin("trusting"); err != nil {
		t.Fatal(err)
	}
	want := func(what, want string, change func(*quote.Quote)) {
		t.Helper()
		if a := w.byTPM(c, change); got(a) != want {
			t.Errorf("%s: %s, want %s", what, got(a), want)
		}
	}
	want("the boot that is expected", "released", nil)
	other := tpmtest.Open(t, tpmtest.Start(t))
	enrol(t, other)
	if a := w.byTPM(other, nil); got(a) != "report-data" && got(a) != "tpm-key" {
		t.Errorf("another TPM: %s", got(a))
	}
	var old *quote.Quote
	want("a quote", "released", func(q *quote.Quote) { x := *q; old = &x })
	want("an older quote", "report-data", func(q *quote.Quote) { *q = *old })
	want("a value", "report-data", func(q *quote.Quote) { q.PCRs["4"] = strings.Repeat("11", 32) })
	want("a signature", "tpm-quote", func(q *quote.Quote) { q.Signature[len(q.Signature)-1] ^= 1 })
	want("a log of nothing", "tpm-quote", func(q *quote.Quote) { q.Log = []byte("x") })
	for _, e := range append(w.eventsOf("trusting", evRelease), w.eventsOf("trusting", evDeny)...) {
		if e.Trust != "host" || e.Technology != "vtpm" || e.Emulated {
			t.Errorf("the audit says %+v", e)
		}
	}
	if err := c.ExtendPCR(seal.ClosingPCR, []byte(seal.Closing)); err != nil {
		t.Fatal(err)
	}
	want("after it was closed", reasonClosed, nil)
	for range 12 { // maps have no order
		want("a register twice", "report-data", func(q *quote.Quote) {
			q.PCRs["015"], q.PCRs["15"] = q.PCRs["15"], strings.Repeat("00", 32)
		})
	}
	want("without the register", "report-data", func(q *quote.Quote) { delete(q.PCRs, "15") })
	if err := c.ExtendPCR(9, []byte("another command line")); err != nil {
		t.Fatal(err)
	}
	want("another boot", reasonMeasurement, nil)
	if list := w.eventsOf("trusting", evDeny); len(list) != 2 ||
		!strings.Contains(list[1].Detail, "PCR 9 (the kernel's command line and the initrd) is ") {
		t.Errorf("denials: %+v", list)
	}
}

// TestKindsApart: guests that trust their hosts have a broker of their own.
func TestKindsApart(t *testing.T) {
	w, _ := tpmWorld(t)
	w.write("other.toml", demands(secret("disk", policy.Repeat)))
	if _, err := Load([]string{w.dir}, ""); !errors.Is(err, ErrConfig) ||
		!strings.Contains(err.Error(), "a broker of its own") {
		t.Errorf("both kinds: %v", err)
	}
	w.trusts = false
	if err := w.begin("other"); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "--host-trusted") {
		t.Errorf("a key of guests that do not trust their hosts: %v", err)
	}
	w.trusts = true
	if err := w.begin("state"); !errors.Is(err, ErrConfig) {
		t.Errorf("the state of guests that do not trust their hosts: %v", err)
	}
	if err := w.begin("trusting"); err != nil {
		t.Fatal(err)
	}
	w.write("p.toml", demands(secret("disk", policy.Repeat)))
	r, err := w.rules()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Reload(r); !errors.Is(err, ErrConfig) {
		t.Errorf("another kind is loaded: %v", err)
	}
	for what, text := range map[string]string{
		"another name":       strings.Replace(trustingPolicy(""), trusting, "web", 1),
		"no table":           strings.Replace(demands(secret("disk", "repeat")), name, trusting, 1),
		"another technology": trustingPolicy("[sev]\nchips = \"any\""),
		"no key":             strings.Replace(trustingPolicy(""), `["web.ak"]`, "[]", 1),
		"a key of none":      strings.Replace(trustingPolicy(""), `["web.ak"]`, `["web.pcrs"]`, 1),
		"PCR 24":             strings.Replace(trustingPolicy(""), "[4, 9]", "[4, 24]", 1),
		"only PCR 15":        strings.Replace(trustingPolicy(""), "[4, 9]", "[15]", 1),
		"only PCR 7":         strings.Replace(trustingPolicy(""), "[4, 9]", "[7]", 1),
		"only PCR 0":         strings.Replace(trustingPolicy(""), "[4, 9]", "[0]", 1),
		"PCR 1":              strings.Replace(trustingPolicy(""), "[4, 9]", "[1, 4]", 1),
		"no value":           strings.Replace(trustingPolicy(""), "[4, 9]", "[4, 8]", 1),
		"nothing expected":   strings.Replace(trustingPolicy(""), `expected = "web.pcrs"`, "", 1),
		"two ways":           strings.Replace(trustingPolicy(""), `pcrs =`, "qemu = \"11.1\"\npcrs =", 1),
	} {
		w.write("p.toml", text)
		if _, err := w.rules(); !errors.Is(err, policy.ErrPolicy) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, line := range map[string]string{"no word": "", "a word": " latch.trust=host"} {
		words := "latch.key=" + w.Key().String() + " latch.broker=port latch.name=" + trusting + line
		f, err := policy.Parse([]byte(trustingPolicy("")))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.CheckWords(words); (err == nil) != (line != "") {
			t.Errorf("%s: %v", what, err)
		}
		if f, err = policy.Parse(w.read("other.toml")); err != nil {
			t.Fatal(err)
		}
		words = strings.Replace(words, trusting, name, 1)
		if err := f.CheckWords(words); (err == nil) != (line == "") {
			t.Errorf("of a guest that does not trust its host: %s: %v", what, err)
		}
	}
}
