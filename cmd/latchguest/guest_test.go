//go:build linux && amd64

package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
)

// platform is a TEE that vouches for anything.
type platform struct {
	kind string
	err  error
	data [64]byte
	asks int
}

func (p *platform) technology() string { return p.kind }

func (p *platform) report(data [64]byte) (*evidence, error) {
	p.asks++
	p.data = data
	return &evidence{evidence: data[:], log: []byte("log")}, p.err
}

// world is a guest with a broker, which answers as a test says.
type world struct {
	*guest
	t        *testing.T
	dir      string
	broker   *exchange.Broker
	private  ed25519.PrivateKey
	console  bytes.Buffer
	platform *platform
	off      int
	slept    time.Duration
	// answer is what the broker says to a request; nil releases the secrets.
	answer   func(*exchange.Shown) []byte
	before   [][]byte // lines before each answer
	receipts atomic.Int64
	dials    int
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), platform: &platform{kind: exchange.SNP}}
	var err error
	if _, w.private, err = ed25519.GenerateKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	if w.broker, err = exchange.NewBroker(w.private, rand.Reader); err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	w.guest = &guest{
		out: &w.console, now: func() time.Time { return at.Add(w.slept) },
		sleep: func(d time.Duration) { w.slept += d },
		tsm:   w.platform, reply: 2 * time.Second, judge: 500 * time.Millisecond,
	}
	w.guest.off = func() { w.off++ }
	w.paths = paths{
		cmdline: w.file("cmdline"), rtmr3: w.file("rtmr3"), coco: w.file("coco"), mem: w.file("mem"),
		ports: w.file("ports"), devices: w.file("dev"), reports: w.file("reports"), sev: w.file("sev-guest"),
		scripts: w.file("scripts"), dracut: w.file("dracut"), systemd: w.file("systemd"), units: w.file("units"),
		volumes: w.file("mapper"), tpm: w.file("tpm"), config: w.file("vmlatch"), serial: w.file("serial"),
	}
	w.dial = w.connect
	w.write(
		"cmdline",
		"console=ttyS0 panic=-1 latch.name=appliance latch.broker=port latch.key="+w.broker.Key.String()+"\n",
	)
	return w
}

func (w *world) file(name string) string { return filepath.Join(w.dir, name) }

func (w *world) write(name, text string) {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Dir(w.file(name)), 0o700); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(w.file(name), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// connect leads to the broker.
func (w *world) connect(exchange.Way) (*stream, error) {
	w.dials++
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	far := &stream{fd: fds[1]}
	go w.serve(far)
	return &stream{fd: fds[0]}, nil
}

func (w *world) serve(s *stream) {
	defer s.close()
	for {
		line, err := s.line(time.Now().Add(10 * time.Second))
		if err != nil {
			return
		}
		for _, l := range w.before {
			_ = s.write(l, time.Now().Add(time.Second))
		}
		var answer []byte
		switch exchange.Want(line) {
		case exchange.WantChallenge:
			ask, err := exchange.ReadAsk(line)
			if err != nil {
				w.t.Errorf("the guest asks %q: %v", line, err)
				return
			}
			answer, _ = w.broker.Challenge(ask, time.Now())
		case exchange.WantRelease:
			shown, _, err := w.broker.ReadRequest(line, time.Now())
			data := shown.ReportData
			if err != nil ||
				!bytes.Equal(data[:], shown.Evidence) && hex.EncodeToString(data[:]) != string(shown.Evidence) {
				w.t.Errorf("the guest requests %.80q: %v", line, err)
				return
			}
			if w.answer != nil {
				answer = w.answer(shown)
			} else {
				answer = w.release(shown)
			}
		case exchange.WantReceipt:
			w.receipts.Add(1)
		}
		if answer == nil {
			continue
		}
		if err := s.write(answer, time.Now().Add(time.Second)); err != nil {
			return
		}
	}
}

func (w *world) release(s *exchange.Shown) []byte {
	values := map[string]exchange.Secret{}
	for _, n := range s.Statement.Secrets {
		values[n] = exchange.Secret{Value: []byte("value of " + n)}
	}
	line, _, err := w.broker.Release(s, values)
	if err != nil {
		w.t.Error(err)
	}
	return line
}

// memory is a directory in memory, as an initrd is.
func memory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "latchguest-*")
	if err != nil {
		t.Skipf("no directory in memory: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := inMemory(dir); err != nil {
		t.Skip(err)
	}
	return dir
}

// run runs the program, and checks that the power is off exactly if it fails.
func (w *world) run(want int, args ...string) string {
	w.t.Helper()
	w.console.Reset()
	w.off, w.slept = 0, 0
	var out bytes.Buffer
	code := run(w.guest, args, &out)
	said := w.console.String()
	if code != want {
		w.t.Errorf("%q: code %d, want %d: %s", args, code, want, said)
	}
	if (w.off > 0) != (code == 4 && !strings.Contains(strings.Join(args, " "), "--check")) {
		w.t.Errorf("%q: code %d, and the power was turned off %d times: %s", args, code, w.off, said)
	}
	if strings.Contains(said+out.String(), "value of") {
		w.t.Errorf("a secret is on the console: %s", said)
	}
	return said + out.String()
}

func TestReleased(t *testing.T) {
	w := newWorld(t)
	dir := memory(t)
	w.run(0, "--secret", "disk="+dir+"/sub/disk", "--secret=api="+dir+"/api")
	for name, file := range map[string]string{"disk": dir + "/sub/disk", "api": dir + "/api"} {
		b, err := os.ReadFile(file)
		if err != nil || string(b) != "value of "+name {
			t.Errorf("%s: %q, %v", file, b, err)
		}
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, want mode 0600", file, info)
		}
	}
	for deadline := time.Now().Add(5 * time.Second); w.receipts.Load() != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d receipts, want 1", w.receipts.Load())
		}
	}
	w.write("disk", "")
	said := w.run(4, "--secret", "disk="+w.file("not-in-memory"))
	if !strings.Contains(said, "is not in memory") && inMemory(w.dir) != nil {
		t.Errorf("a file on a disk: %s", said)
	}
	w.run(4, "--secret", "disk="+dir+"/api") // exists: whoever made it may read it
}

func (w *world) deny(reason string, retry bool) {
	w.answer = func(s *exchange.Shown) []byte { return w.broker.Deny(s.Hash, reason, retry) }
}

func (w *world) pend() {
	w.answer = func(s *exchange.Shown) []byte { return w.broker.Pend(s.Hash, 7, 5*time.Second) }
}

func (w *world) luks(header string) {
	w.answer = func(s *exchange.Shown) []byte {
		line, _, err := w.broker.Release(
			s,
			map[string]exchange.Secret{"disk": {Value: []byte("key"), LUKSHeader: header}},
		)
		if err != nil {
			w.t.Error(err)
		}
		return line
	}
}

// TestLies: a host that answers in the broker's place is not heard.
func TestLies(t *testing.T) {
	dir := memory(t)
	other, err := exchange.NewBroker(ed25519.NewKeyFromSeed(make([]byte, 32)), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, lie := range map[string]func(w *world, s *exchange.Shown) []byte{
		"a denial of its own": func(_ *world, s *exchange.Shown) []byte {
			return other.Deny(s.Hash, "policy", false)
		},
		"a pending of its own": func(_ *world, s *exchange.Shown) []byte { return other.Pend(s.Hash, 1, time.Hour) },
		"a secret of its own": func(_ *world, s *exchange.Shown) []byte {
			l, _, _ := other.Release(s, nil)
			return l
		},
		"a denial of another": func(w *world, _ *exchange.Shown) []byte {
			return w.broker.Deny(exchange.SHA512{1}, "policy", false)
		},
		"a status": func(w *world, s *exchange.Shown) []byte {
			return w.broker.Status(s.Hash, exchange.Denied, "policy")
		},
		"nothing like a message": func(*world, *exchange.Shown) []byte {
			return []byte(`{"denied":"policy","retry":false}` + "\n")
		},
		"a flood": func(*world, *exchange.Shown) []byte { return bytes.Repeat([]byte("{}\n"), 100) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			lies := 0
			w.answer = func(s *exchange.Shown) []byte {
				if lies++; lies == 1 {
					return lie(w, s)
				}
				return w.release(s)
			}
			w.run(0, "--secret", "disk="+memory(t)+"/disk", "--timeout", "5m")
			if lies < 2 {
				t.Error("the lie was not told")
			}
		})
	}
	// Lines of an earlier attempt, which a port has kept, are passed over.
	w := newWorld(t)
	ask, _ := exchange.ReadAsk((&exchangeAsk{w.broker.Key}).line())
	stale, err := w.broker.Challenge(ask, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	w.before = [][]byte{stale, []byte("noise\n"), w.broker.Deny(exchange.SHA512{}, "policy", false)}
	w.run(0, "--secret", "disk="+dir+"/stale")
	if w.dials != 1 {
		t.Errorf("%d connections, want 1", w.dials)
	}
}

// exchangeAsk is the first message of another attempt.
type exchangeAsk struct{ key exchange.Key }

func (a *exchangeAsk) line() []byte {
	agent, err := exchange.NewAgent(exchange.AgentConfig{
		Broker: a.key, Name: "appliance", Technology: exchange.SNP, Secrets: []string{"disk"}, Seed: make([]byte, 32),
	})
	if err != nil {
		return nil
	}
	return agent.Ask([16]byte{9})
}

// TestClosing: a trust domain's launch is closed before the secret is anywhere, and one whose
// kernel cannot is told by a measured word.
func TestClosing(t *testing.T) {
	dir := memory(t)
	w := newWorld(t)
	w.platform.kind = exchange.TDX
	w.write("rtmr3", "")
	w.run(0, "--secret", "disk="+dir+"/closed")
	want := sha512.Sum384([]byte("vmlatch closed v1"))
	if b, err := os.ReadFile(w.rtmr3); err != nil || !bytes.Equal(b, want[:]) {
		t.Errorf("RTMR3 is extended by %x, %v, want %x", b, err, want)
	}
	line, err := os.ReadFile(w.cmdline)
	if err != nil {
		t.Fatal(err)
	}
	w = newWorld(t)
	w.platform.kind = exchange.TDX
	line = bytes.Replace(line, []byte("latch.key="), []byte("latch.close=no latch.key="), 1)
	line = append(line[:bytes.Index(line, []byte("latch.key="))], []byte("latch.key="+w.broker.Key.String())...)
	w.write("cmdline", string(line))
	w.run(0, "--secret", "disk="+dir+"/open")
}

// TestArguments: wrong use says so, and turns nothing off.
func TestArguments(t *testing.T) {
	w := newWorld(t)
	for _, args := range [][]string{
		nil,
		{"--secret"},
		{"--secret", "../x=/y"},
		{"--secret", "a=b"},
		{"--secret", "disk"},
		{"extra"},
		{"--what"},
		{"--secret", "a", "--secret", "b"},
		{"--secret", "a=/x", "--secret", "a=/y"},
		{"--secret", "a=/x", "--device", "/d"},
		{"--secret", "a", "--device", "d", "--open", "r"},
		{"--secret", "a", "--device", "/d", "--open", "../r"},
		{"--secret", "a=/x", "--timeout", "0"},
		{"--secret", "a=/x", "--timeout", "5x"},
		{"--secret", "a=/x", "--timeout", "1hm"},
	} {
		w.run(2, args...)
	}
	if said := w.run(0, "--help"); !strings.Contains(said, "examples:") {
		t.Errorf("help: %s", said)
	}
	w.run(0, "--version")
	w.run(0, "--check")
	w.write("cmdline", "console=ttyS0")
	w.run(2, "--secret", "a=/x") // no broker, nothing to protect
	if said := w.run(4, "--check"); !strings.Contains(said, "a shell opens") {
		t.Errorf("check: %s", said)
	}
	_ = os.Remove(w.cmdline)
	w.run(2, "--secret", "a=/x")
	for text, want := range map[string]time.Duration{
		"90s": 90 * time.Second, "7": 7 * time.Second, "5m": 5 * time.Minute, "2h": 2 * time.Hour,
	} {
		if got, err := parseDuration(text); err != nil || got != want {
			t.Errorf("%s: %v, %v, want %v", text, got, err, want)
		}
	}
}

func TestSeed(t *testing.T) {
	if !hasRDRAND() {
		if _, err := newSeed(); err == nil {
			t.Error("a seed without RDRAND")
		}
		return
	}
	a, err1 := newSeed()
	b, err2 := newSeed()
	if err := errors.Join(err1, err2); err != nil || bytes.Equal(a[:32], b[:32]) || bytes.Equal(a[32:], b[32:]) {
		t.Errorf("two seeds: %x, %x, %v", a, b, err)
	}
}
