//go:build linux

package broker

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence/evidencetest"
	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
)

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
	var said []string
	b.log = func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
	w.want(w.guest(1, exchange.SNP), reasonDryRun)
	if len(said) == 0 || !strings.HasPrefix(said[len(said)-1], "would release disk to appliance-emulated on ") {
		t.Errorf("it says %q", said)
	}
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
