package check_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/ovmf/ovmftest"
	"github.com/vmlatch/vmlatch/launcher"
	"github.com/vmlatch/vmlatch/launcher/check"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// specDir has the files of a spec.
func specDir(t *testing.T, tech string, c checkCase) string {
	t.Helper()
	dir := t.TempDir()
	cert, session := strings.Repeat("A", 2084/3*4+4), strings.Repeat("A", 128/3*4+4)
	files := map[string]string{"k": "kernel", "cert": cert[:len(cert)-1] + "=", "session": session[:len(session)-1] + "="}
	for name, text := range c.files {
		files[name] = text
	}
	for name, text := range files {
		if text == "-" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if c.files["disk"] != "" {
		if err := os.Chmod(filepath.Join(dir, "disk"), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if c.files["fw"] == "" {
		image := amdsev(t)
		if tech == "tdx" {
			image = tdxFirmware
			if _, err := os.Stat(image); err != nil {
				t.Skipf("%v: run make setup", err)
			}
		}
		if err := os.Symlink(image, filepath.Join(dir, "fw")); err != nil {
			t.Fatal(err)
		}
	}
	l, err := listen(filepath.Join(dir, "qgs"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return dir
}

// look makes all checks of a case. Of a spec that is refused when it is read there
// is the one result that refuses it.
func (c checkCase) look(t *testing.T) (results []CheckResult, refused bool) {
	t.Helper()
	dir := specDir(t, c.tech, c)
	text := specOf[c.tech]
	if c.replace[0] != "" {
		if !strings.Contains(text, c.replace[0]) {
			t.Fatalf("the spec has no %q", c.replace[0])
		}
		text = strings.Replace(text, c.replace[0], c.replace[1], 1)
	}
	spec, err := ParseSpec([]byte(text+c.add), filepath.Join(dir, "vm.toml"), dir)
	if r, ok := resultOf(err); ok {
		return []CheckResult{r}, true
	}
	if err != nil {
		t.Fatal(err)
	}
	facts := machine(nil)
	facts.SlotDir = filepath.Join(dir, "run/.slots")
	facts.Host.Slots[1].InUse = 5
	facts.Host.Slots = append(facts.Host.Slots, host.Pool{Name: "tdx", Technologies: []string{"tdx"}, Total: 63, InUse: -1})
	plan, err := NewPlan(spec, facts, rundir.Root{Run: filepath.Join(dir, "run"), State: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	if c.host != nil {
		c.host(&plan.facts)
	}
	if c.argv[0] != "" {
		changed := false
		for i, a := range plan.Argv {
			if n := strings.Replace(a, c.argv[0], c.argv[1], 1); n != a {
				plan.Argv[i], changed = n, true
			}
		}
		if !changed {
			t.Fatalf("the command line has no %q: %q", c.argv[0], plan.Argv)
		}
	}
	if c.plan != nil {
		c.plan(plan)
	}
	return CheckPlan(plan), false
}

func failedIDs(results []CheckResult) (ids []string) {
	for _, r := range results {
		if r.Verdict == CheckFailed {
			ids = append(ids, r.ID)
		}
	}
	return ids
}

// TestChecks: each check fails for its own reason, and there is none without one.
func TestChecks(t *testing.T) {
	known := map[string]Check{}
	for _, c := range Checks() {
		if _, twice := known[c.ID]; twice {
			t.Errorf("%s stands in the table twice", c.ID)
		}
		known[c.ID] = c
		if c.Cause == "" || c.Fix == "" || c.Source == "" || c.Severity == "" || c.look == nil {
			t.Errorf("%s: a field is missing", c.ID)
		}
		if _, ok := checkCases[c.ID]; !ok {
			t.Errorf("%s: nothing makes it fail", c.ID)
		}
	}
	for id, c := range checkCases {
		t.Run(id, func(t *testing.T) {
			check, ok := known[id]
			if !ok {
				t.Fatal("no such check")
			}
			results, refused := c.look(t)
			if refused != c.refused {
				t.Errorf("refused early: %t, %+v", refused, results)
			}
			i := slices.IndexFunc(results, func(r CheckResult) bool { return r.ID == id })
			if i < 0 || results[i].Verdict != CheckFailed {
				t.Fatalf("it does not fail; these do: %v (%+v)", failedIDs(results), results[max(i, 0)])
			}
			if results[i].Refuses() != (check.Severity != Warn) {
				t.Errorf("refuses: %t, severity %s", results[i].Refuses(), check.Severity)
			}
		})
	}
}

// TestChecksPass: nothing is wrong with good specs on a good host.
func TestChecksPass(t *testing.T) {
	for tech := range specOf {
		t.Run(tech, func(t *testing.T) {
			results, refused := checkCase{tech: tech}.look(t)
			if ids := failedIDs(results); refused || len(ids) > 0 {
				t.Errorf("%v: %+v", ids, results)
			}
			for _, r := range results {
				if r.Verdict == CheckUnknown {
					t.Errorf("%s: unknown: %s", r.ID, r.Detail)
				}
			}
		})
	}
}

// TestUnknownRefusesNothing: what a user cannot read is no reason to refuse.
func TestUnknownRefusesNothing(t *testing.T) {
	blind := func(f *Facts) {
		for i := range f.Host.Technologies {
			f.Host.Technologies[i].Usable = host.Unknown
		}
		f.Host.SMT, f.Host.IOMMU = host.Unknown, host.IOMMU{Present: host.Yes, Passthrough: host.Unknown}
		f.Host.SEV.SNPEnabled, f.Host.SEV.DebugSwap, f.Host.SEV.SNPAPI = host.Unknown, host.Unknown, ""
		f.Host.TDX.Initialized, f.Host.Slots, f.Host.MemFree = host.Unknown, nil, 0
	}
	for tech := range specOf {
		results, _ := checkCase{tech: tech, host: blind}.look(t)
		for _, r := range results {
			if r.Refuses() {
				t.Errorf("%s: %s refuses: %s", tech, r.ID, r.Detail)
			}
		}
	}
}

// TestPipeAsFirmware: nothing waits for who writes a pipe.
func TestPipeAsFirmware(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "fw"), 0o600); err != nil {
		t.Fatal(err)
	}
	spec, err := launcher.ParseSpec([]byte(testhost.Specs()["sev-es"]), filepath.Join(dir, "vm.toml"), dir)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := launcher.NewPlan(spec, testhost.Facts(), rundir.Root{Run: filepath.Join(dir, "run"), State: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	if ids := failedIDs(CheckPlan(plan)); !slices.Contains(ids, "files-readable") {
		t.Errorf("%v", ids)
	}
}
