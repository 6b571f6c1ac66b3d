//go:build linux

package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence/bundle"
	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/ovmf/ovmftest"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/table"
	"github.com/vmlatch/vmlatch/firmware/swtee"
)

// sevWorld is a broker for guests of SEV, with an emulated platform as their host's.
type sevWorld struct {
	*world
	platform *swtee.Platform
	image    []byte
	chip     string
}

const sevDemands = `schema = "latch-policy/1"
name = %q
[guest]
firmware = "OVMF.fd"
kernel = "vmlinuz"
cmdline = "cmdline"
cpus = 1
cpu = "EPYC-Milan"
[sev]
chips = [%q]
min-api = "1.40"
[emulated]
root = "root.pem"
[[release]]
secret = "disk"
kind = "luks"
luks-header = "%s"
file = "disk"
mode = "repeat"
[[release]]
secret = "api"
file = "api"
mode = "repeat"
`

func newSEVWorld(t *testing.T) *sevWorld {
	t.Helper()
	dir := t.TempDir()
	p, err := swtee.OpenPlatform(filepath.Join(dir, "platform"))
	if err != nil {
		t.Fatal(err)
	}
	chip, err := cekDigest(p.Chain())
	if err != nil {
		t.Fatal(err)
	}
	w := &sevWorld{
		world: &world{t: t, dir: dir}, platform: p, chip: chip,
		image: ovmftest.AmdSev(ovmftest.Size(256<<10), ovmftest.ResetVector()),
	}
	w.at.Store(time.Now().UnixNano())
	key, _, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	if w.key, err = ParseKey(key); err != nil {
		t.Fatal(err)
	}
	w.write("disk", "value of disk")
	w.write("api", "value of api")
	w.write("OVMF.fd", string(w.image))
	w.write("vmlinuz", string(ovmftest.Kernel()))
	w.write("cmdline", "console=ttyS0\n")
	w.write("root.pem", string(p.RootPEM()))
	w.policy(chip)
	b := bundle.New()
	roots, err := bundle.ParseRoots("root.pem", p.RootPEM())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Add(bundle.Part{Kind: bundle.CEK, Data: p.SignedCEK()}, *roots); err != nil {
		t.Fatal(err)
	}
	text, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	w.write("bundle.json", string(text))
	w.start()
	return w
}

func (w *sevWorld) policy(chip string) {
	w.write("p.toml", fmt.Sprintf(sevDemands, name, chip, strings.Repeat("cd", 32)))
}

func (w *sevWorld) question() *exchange.AskSession {
	return &exchange.AskSession{
		Broker: w.Key(), Name: name, Technology: exchange.SEV, Hello: [16]byte{1},
		PDH: w.platform.Chain().PDH.Bytes(), Chain: w.platform.Chain().Bytes(),
	}
}

func (w *sevWorld) ask(q *exchange.AskSession) (*exchange.Session, error) {
	return exchange.ReadSession(w.Answer(context.Background(), q.Line()), w.Key(), q)
}

// launch begins a launch with a session.
func (w *sevWorld) launch(s *exchange.Session, cmdline string) (*swtee.Guest, *exchange.AskPacket) {
	w.t.Helper()
	g := swtee.NewFirmware(w.platform).NewGuest()
	h, err := sev.HashKernelFiles(filepath.Join(w.dir, "vmlinuz"), nil, cmdline)
	if err != nil {
		w.t.Fatal(err)
	}
	table := h.Table()
	err = errors.Join(g.Init(swtee.CmdInit, false, 0), g.LaunchStart(sev.Policy(s.Policy), s.GODH, s.Session),
		g.LaunchUpdateData(0xffc00000, w.image), g.LaunchUpdateData(0x810c00, table[:]))
	m, e := g.LaunchMeasure()
	if err := errors.Join(err, e); err != nil {
		w.t.Fatal(err)
	}
	b := swtee.FirmwareBuild()
	return g, &exchange.AskPacket{
		Broker: w.Key(), Token: s.Token, Measurement: m.Bytes(), Major: b.Major, Minor: b.Minor, Build: b.Build,
	}
}

func reasonOfError(err error) string {
	var r *exchange.RefusedError
	if errors.As(err, &r) {
		return r.Reason
	}
	return fmt.Sprint(err)
}

func TestSEV(t *testing.T) {
	w := newSEVWorld(t)
	s, err := w.ask(w.question())
	if err != nil {
		t.Fatal(err)
	}
	if p := sev.Policy(s.Policy); !p.Covers(sev.PolicyDefault) {
		t.Errorf("policy %v, want at least %v", p, sev.PolicyDefault)
	}
	g, q := w.launch(s, "console=ttyS0")
	first := w.Answer(context.Background(), q.Line())
	p, err := exchange.ReadPacket(first, w.Key(), q)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := g.LaunchSecret(p.Header, p.Secret, len(p.Secret))
	if err != nil {
		t.Fatal(err)
	}
	entries, err := table.Parse(plain)
	if err != nil {
		t.Fatal(err)
	}
	found := map[sev.GUID][]byte{}
	for _, e := range entries {
		found[e.GUID] = e.Data
	}
	values := map[string][]byte{}
	for _, n := range []string{"disk", "api", "disk" + exchange.HeaderSuffix} {
		values[n] = found[table.Named(n)]
	}
	if string(values["disk"]) != "value of disk" || string(values["api"]) != "value of api" {
		t.Errorf("the guest finds %q", values)
	}
	if err := exchange.CheckInjected(found[table.GUIDInjected], w.Key(), name, values); err != nil {
		t.Errorf("the envelope: %v", err)
	}
	if again := w.Answer(context.Background(), q.Line()); !bytes.Equal(again, first) {
		t.Error("the same question gets other bytes")
	}
	_, other := w.launch(s, "console=ttyS0") // the session replayed: another nonce of the platform's
	if _, err := exchange.ReadPacket(w.Answer(context.Background(), other.Line()), w.Key(), other); reasonOfError(
		err,
	) != reasonLaunchKey {
		t.Errorf("a second measurement for one session: %v, want %s", err, reasonLaunchKey)
	}
	if n := len(w.events(evRelease)); n != 1 {
		t.Errorf("%d releases in the audit, want 1", n)
	}
	status, err := exchange.ReadStatus(
		w.Answer(context.Background(), exchange.AskForStatus(exchange.LineHash(q.Line()))),
		w.Key(),
		exchange.LineHash(q.Line()),
	)
	if err != nil || status.State != exchange.Released {
		t.Errorf("status %+v, %v, want released", status, err)
	}
}

func TestSEVRefused(t *testing.T) {
	w := newSEVWorld(t)
	for what, change := range map[string]func(*exchange.AskSession){
		"no-policy for SEV-ES": func(q *exchange.AskSession) { q.Technology = exchange.SEVES },
		"no-policy of a name":  func(q *exchange.AskSession) { q.Name = "other" },
		"malformed chain":      func(q *exchange.AskSession) { q.Chain = q.Chain[:40] },
		"chain of another": func(q *exchange.AskSession) {
			other, err := swtee.OpenPlatform(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			q.PDH = other.Chain().PDH.Bytes() // of another platform: its PEK does not sign it
		},
	} {
		q := w.question()
		change(q)
		want, _, _ := strings.Cut(what, " ")
		if _, err := w.ask(q); reasonOfError(err) != want {
			t.Errorf("%s: %v", what, err)
		}
	}
	s, err := w.ask(w.question())
	if err != nil {
		t.Fatal(err)
	}
	_, q := w.launch(s, "console=ttyS0 init=/bin/sh")
	read := func(q *exchange.AskPacket) string {
		_, err := exchange.ReadPacket(w.Answer(context.Background(), q.Line()), w.Key(), q)
		return reasonOfError(err)
	}
	if got := read(q); got != reasonMeasurement {
		t.Errorf("another command line: %s, want %s", got, reasonMeasurement)
	}
	_, q = w.launch(s, "console=ttyS0")
	q.Minor++
	if got := read(q); got != reasonMeasurement { // the MAC covers it
		t.Errorf("another build: %s, want %s", got, reasonMeasurement)
	}
	q.Minor--
	q.Token = bytes.Clone(q.Token)
	q.Token[20] ^= 1
	if got := read(q); got != reasonToken {
		t.Errorf("a forged token: %s, want %s", got, reasonToken)
	}
	q.Token[20] ^= 1
	w.pass(exchange.TokenLifetime + time.Second)
	if got := read(q); got != reasonToken {
		t.Errorf("an old session: %s, want %s", got, reasonToken)
	}
	w.restart()
	if got := read(q); got != reasonToken {
		t.Errorf("after a restart: %s, want %s", got, reasonToken)
	}
	w.policy(strings.Repeat("0", 64))
	_ = w.Close()
	w.start()
	if _, err := w.ask(w.question()); reasonOfError(err) != reasonChip {
		t.Errorf("a chip that is not the owner's: %v, want %s", err, reasonChip)
	}
	w.policy(w.chip)
	bundle := []byte(`{"schema":"latch-bundle/1","parts":[]}`)
	if err := os.WriteFile(filepath.Join(w.dir, "bundle.json"), bundle, 0o600); err != nil {
		t.Fatal(err)
	}
	w.restart()
	if _, err := w.ask(w.question()); reasonOfError(err) != "certificate-missing" {
		t.Errorf("without the chip's signed certificate: %v, want certificate-missing", err)
	}
}
