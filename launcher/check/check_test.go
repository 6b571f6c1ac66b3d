package check_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/ovmf/ovmftest"
	"github.com/vmlatch/vmlatch/launcher/check"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// services listen for as long as the tests run.
var services []net.Listener

// takenPort is an address and port of this machine that something listens on.
func takenPort() string {
	l, err := net.Listen("tcp4", "0.0.0.0:0") // which needs no interface
	if err != nil {
		panic(err)
	}
	services = append(services, l)
	return l.Addr().String()
}

// untouched is the directory of cases that change no file in it.
var untouched string

func TestMain(m *testing.M) {
	code := m.Run()
	if untouched != "" {
		_ = os.RemoveAll(untouched)
	}
	os.Exit(code)
}

// dir is the directory of a case, with the files of a spec.
func (c checkCase) dir(t *testing.T) string {
	t.Helper()
	if c.files != nil || c.plan != nil {
		return specDir(t, t.TempDir(), c)
	}
	if untouched == "" {
		dir, err := os.MkdirTemp("", "check")
		if err != nil {
			t.Fatal(err)
		}
		untouched = specDir(t, dir, c)
	}
	return untouched
}

// specDir fills a directory with the files of a spec.
func specDir(t *testing.T, dir string, c checkCase) string {
	t.Helper()
	cert, session := strings.Repeat("A", 2084/3*4+4), strings.Repeat("A", 128/3*4+4)
	files := map[string]string{
		"k":       string(ovmftest.Kernel()),
		"cert":    cert[:len(cert)-1] + "=",
		"session": session[:len(session)-1] + "=",
	}
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
		if err := os.WriteFile(filepath.Join(dir, "fw"), ovmftest.AmdSev(ovmftest.ResetVector()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "qgs"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	services = append(services, l)
	return dir
}

// look makes all checks of a case. Of a spec that is refused when it is read there
// is the one result that refuses it.
func (c checkCase) look(t *testing.T) (results []check.Result, refused bool) {
	t.Helper()
	dir := c.dir(t)
	text := testhost.Specs()[c.tech]
	if c.replace[0] != "" {
		if !strings.Contains(text, c.replace[0]) {
			t.Fatalf("the spec has no %q", c.replace[0])
		}
		text = strings.Replace(text, c.replace[0], c.replace[1], 1)
	}
	written, err := tee.Parse([]byte(text+c.add), filepath.Join(dir, "vm.toml"), dir)
	if err != nil {
		t.Fatal(err)
	}
	g, err := written.For(c.tech)
	if err != nil {
		t.Fatal(err)
	}
	if r, ok := check.Of(check.SpecError(g, check.Spec(g))); ok {
		return []check.Result{r}, true
	}
	facts := testhost.Facts()
	facts.SlotDir = filepath.Join(dir, "run/.slots")
	facts.Host.Slots[1].InUse = 5
	facts.Host.Slots = append(facts.Host.Slots,
		host.Pool{Name: "tdx", Technologies: []string{"tdx"}, Total: 63, InUse: -1})
	root := rundir.Root{Run: filepath.Join(dir, "run"), State: filepath.Join(dir, "state")}
	p, err := plan.Build(&g.Guest, g, rundir.Choice{}, facts, root)
	if err != nil {
		t.Fatal(err)
	}
	if c.host != nil {
		c.host(p.Facts)
	}
	if c.guest != nil {
		c.guest(g)
	}
	if c.argv[0] != "" {
		changed := false
		for i, a := range p.Argv {
			if n := strings.Replace(a, c.argv[0], c.argv[1], 1); n != a {
				p.Argv[i], changed = n, true
			}
		}
		if !changed {
			t.Fatalf("the command line has no %q: %q", c.argv[0], p.Argv)
		}
	}
	if c.plan != nil {
		c.plan(p)
	}
	return check.Plan(g, p), false
}

func failedIDs(results []check.Result) (ids []string) {
	for _, r := range results {
		if r.Verdict == tee.Failed {
			ids = append(ids, r.ID)
		}
	}
	return ids
}

// TestChecks: each check fails for its own reason, and each has one.
func TestChecks(t *testing.T) {
	known := map[string]tee.Check{}
	for _, c := range check.Table() {
		if _, twice := known[c.ID]; twice {
			t.Errorf("%s stands in the table twice", c.ID)
		}
		known[c.ID] = c
		if c.Cause == "" || c.Fix == "" || c.Source == "" || c.Severity == "" || c.Look == nil {
			t.Errorf("%s: a field is missing", c.ID)
		}
		if _, ok := checkCases[c.ID]; !ok {
			t.Errorf("%s: nothing makes it fail", c.ID)
		}
	}
	for id, c := range checkCases {
		t.Run(id, func(t *testing.T) {
			row, ok := known[id]
			if !ok {
				t.Fatal("no such check")
			}
			results, refused := c.look(t)
			if refused != c.refused {
				t.Errorf("refused early: %t, %+v", refused, results)
			}
			i := slices.IndexFunc(results, func(r check.Result) bool { return r.ID == id })
			if i < 0 || results[i].Verdict != tee.Failed {
				t.Fatalf("it does not fail; these do: %v (%+v)", failedIDs(results), results[max(i, 0)])
			}
			if results[i].Refuses() != (row.Severity != tee.Warn) {
				t.Errorf("refuses: %t, severity %s", results[i].Refuses(), row.Severity)
			}
		})
	}
}

// TestChecksPass: nothing is wrong with good specs on a good host.
func TestChecksPass(t *testing.T) {
	for tech := range testhost.Specs() {
		t.Run(tech, func(t *testing.T) {
			c := checkCase{tech: tech}
			if tech == "none" {
				c.add = "[[disk]]\nimage = \"k\"\n" // or there would be nothing to boot
			}
			results, refused := c.look(t)
			if ids := failedIDs(results); refused || len(ids) > 0 {
				t.Errorf("%v: %+v", ids, results)
			}
			for _, r := range results {
				if r.Verdict == tee.Unknown {
					t.Errorf("%s: unknown: %s", r.ID, r.Detail)
				}
			}
		})
	}
}

// TestUnknownRefusesNothing: what a user cannot read does not refuse.
func TestUnknownRefusesNothing(t *testing.T) {
	blind := func(f *plan.Facts) {
		for i := range f.Host.Technologies {
			f.Host.Technologies[i].Usable = host.Unknown
		}
		f.Host.SMT, f.Host.IOMMU = host.Unknown, host.IOMMU{Present: host.Yes, Passthrough: host.Unknown}
		f.Host.SEV.SNPEnabled, f.Host.SEV.DebugSwap, f.Host.SEV.SNPAPI = host.Unknown, host.Unknown, ""
		f.Host.TDX.Initialized, f.Host.Slots, f.Host.MemFree = host.Unknown, nil, 0
	}
	for tech := range testhost.Specs() {
		results, _ := checkCase{tech: tech, host: blind}.look(t)
		for _, r := range results {
			if r.Refuses() {
				t.Errorf("%s: %s refuses: %s", tech, r.ID, r.Detail)
			}
		}
	}
}

// TestPipeAsFirmware: the writer of a pipe is not waited for.
func TestPipeAsFirmware(t *testing.T) {
	pipe := func(p *plan.Plan) {
		image := p.Guest.Firmware.Image
		if err := errors.Join(os.Remove(image), unix.Mkfifo(image, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	results, _ := checkCase{tech: "sev-es", plan: pipe}.look(t)
	if ids := failedIDs(results); !slices.Contains(ids, check.FilesReadable) {
		t.Errorf("these fail: %v, want %s among them", ids, check.FilesReadable)
	}
}

// TestOrder: the order of the table lists each check once, and no other.
func TestOrder(t *testing.T) {
	table := check.Table()
	for i, c := range table[1:] {
		if c.Stage < table[i].Stage && c.ID != check.FilesReadable {
			t.Errorf("%s comes after %s, which needs more", c.ID, table[i].ID)
		}
	}
	for _, id := range check.Order() {
		if !slices.ContainsFunc(table, func(c tee.Check) bool { return c.ID == id }) {
			t.Errorf("%s is in the order and not in the table", id)
		}
	}
	if len(table) != len(check.Order()) {
		t.Errorf("%d checks, %d in the order", len(table), len(check.Order()))
	}
}

// TestDevicesPinMemory: a device of the host's reaches all memory of a plain guest, which QEMU must
// be allowed to pin.
func TestDevicesPinMemory(t *testing.T) {
	for most, want := range map[uint64]bool{8 << 20: true, 1 << 40: false} {
		c := checkCase{tech: "none", add: aPCI, host: func(f *plan.Facts) {
			pciIs(func(*host.PCIDevice) {})(f)
			f.MaxLock = most
		}}
		results, _ := c.look(t)
		if got := slices.Contains(failedIDs(results), "memory-lock"); got != want {
			t.Errorf("with %d bytes: fails %t, want %t", most, got, want)
		}
	}
}
