package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const unitDir = "cmd/vmlatch/systemd"

func needProgram(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%v: run make setup", err)
		}
	}
}

// TestUnits: systemd's own tools accept the units.
func TestUnits(t *testing.T) {
	needProgram(t, "systemd-analyze")
	dir := t.TempDir()
	services := map[string]int{ // the worst exposure that is accepted, in tenths
		// This counts vmlatch's process, which puts each QEMU into namespaces, and gives it a user
		// that no other VM has: for that it is root, with capabilities. TestTakenOver shows what a
		// QEMU is left with.
		"vmlatch@.service":         38,
		"vmlatch-release@.service": 26,
		"vmlatch-nfd.service":      30,
		"vmlatch-logs.service":     24,
		"latchkey.service":         15,
	}
	for _, unit := range []string{
		"vmlatch@.service",
		"vmlatch-release@.service",
		"vmlatch-nfd.service",
		"vmlatch-nfd.timer",
		"vmlatch-logs.service",
		"vmlatch-logs.timer",
		"latchkey.service",
		"latchkey.socket",
		"latchkey-approve.socket",
		"latchguest.service",
		"latchguest-tpm.service",
		"latchguest-config.service",
	} {
		from := unitDir
		switch {
		case strings.HasPrefix(unit, "latchkey"):
			from = "cmd/latchkey/systemd"
		case strings.HasPrefix(unit, "latchguest"):
			from = "cmd/latchguest/initrd/systemd"
		}
		b, err := os.ReadFile(filepath.Join(top(), from, unit))
		if err != nil {
			t.Fatal(err)
		}
		b = bytes.ReplaceAll(b, []byte("/usr/bin/"), []byte(binaries+"/"))
		if err := os.WriteFile(filepath.Join(dir, unit), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	verify := func(what, unit string) {
		t.Helper()
		cmd := exec.Command(
			"systemd-analyze",
			"verify",
			"--man=no",
			"--recursive-errors=no",
			filepath.Join(dir, unit),
		)
		cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", what, err, out)
		}
	}
	for _, unit := range []string{
		"vmlatch@guest.service",
		"vmlatch-release@guest.service",
		"vmlatch-nfd.service",
		"vmlatch-nfd.timer",
		"latchkey.service",
		"latchkey.socket",
		"latchkey-approve.socket",
		"latchguest.service",
		"latchguest-tpm.service",
		"latchguest-config.service",
	} {
		verify(unit, unit)
	}
	// systemd accepts the drop-in that the help shows.
	out, err := exec.Command(filepath.Join(binaries, "vmlatch"), "help", "systemd").Output()
	if err != nil {
		t.Fatal(err)
	}
	_, example, _ := strings.Cut(string(out), "   [Service]\n")
	example, _, ok := strings.Cut(example, "\n\n")
	if !ok {
		t.Fatalf("no drop-in in %s", out)
	}
	dropIn := filepath.Join(dir, "vmlatch@guest.service.d")
	example = "[Service]\n" + strings.ReplaceAll(example, "   ", "") + "\n"
	if err := os.Mkdir(dropIn, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dropIn, "help.conf"), []byte(example), 0o644); err != nil {
		t.Fatal(err)
	}
	verify("the help's drop-in", "vmlatch@guest.service")
	for unit, limit := range services {
		out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager",
			fmt.Sprintf("--threshold=%d", limit), filepath.Join(dir, unit)).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", unit, err, out)
		}
	}
}

// TestPackages: the recipe makes packages, and lintian has nothing to say about them.
func TestPackages(t *testing.T) { packages(t) }

var makePackages = sync.OnceValues(func() ([]string, error) {
	cmd := exec.Command("make", "-s", "deb")
	cmd.Dir = top()
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make deb: %w\n%s", err, out)
	}
	return filepath.Glob(filepath.Join(top(), ".cache/deb/*.deb"))
})

// packages makes the packages of this tree, once.
func packages(t *testing.T) []string {
	t.Helper()
	needProgram(t, "make", "dpkg-buildpackage", "dh", "lintian")
	debs, err := makePackages()
	if err != nil || len(debs) != 4 {
		t.Fatalf("packages %v, want four: %v", debs, err)
	}
	return debs
}
