package plan_test

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares a text with a file's; -update rewrites the file.
func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

// build plans for a spec's first technology.
func build(t testing.TB, text string, f *plan.Facts) (*plan.Plan, error) {
	t.Helper()
	s, err := tee.Parse([]byte(text), "vm.toml", "/specs")
	if err != nil {
		t.Fatal(err)
	}
	name := s.Asked()[0]
	g, err := s.For(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Fits(f, false); err != nil {
		return nil, err
	}
	return plan.Build(&g.Guest, g, rundir.Choice{What: "technology", Value: name, From: "spec"}, f, testhost.Root())
}

// TestGolden compares command lines, one option a line. Refresh the files with
// -update, and read what changed.
func TestGolden(t *testing.T) {
	for name, c := range map[string]struct {
		spec  string
		facts *plan.Facts
	}{
		"plain-tcg": {`name = "vm"`, testhost.Facts(testhost.NoKVM("no /dev/kvm"))},
		"plain-kvm": {`
			name = "vm"
			memory = "2GiB"
			cpus = 4
			[firmware]
			type = "uefi"
			[[disk]]
			image = "a,b.qcow2"
			[[disk]]
			image = "/dev/vg/data"
			read-only = true
			[[network]]
			mode = "user"
			forward = ["tcp:127.0.0.1:2222:22"]
			mac = "52:54:00:00:00:01"`, testhost.Facts()},
		"sev":          {sevSpec, testhost.Facts()},
		"sev-confined": {sevSpec, testhost.Facts(testhost.Confined)},
		"plain-confined": {`
			name = "vm"
			[firmware]
			type = "uefi"
			[kernel]
			image = "k"
			cmdline = "root=/dev/vda"
			[[disk]]
			image = "a.qcow2"
			[[network]]
			mode = "user"
			[display]
			[[share]]
			path = "/srv/data"
			tag = "data"
			mode = "9p"
			[[object]]
			qom-type = "rng-random"
			id = "r"
			filename = "/dev/hwrng"`, testhost.Facts(testhost.Confined)},
		"sev-emulated": {
			sevSpec,
			testhost.Facts(testhost.NoKVM("none"), testhost.Emulated("/usr/bin/swtee", "--platform", "/p", "--")),
		},
		"snp": {snpSpec, testhost.Facts()},
		"snp-igvm": {
			strings.NewReplacer("kernel-hashes = true", "", "[kernel]", "", `image = "k"`, "").Replace(snpSpec),
			testhost.Facts(testhost.WithIGVM),
		},
		"sev-features-disk": {`
			name = "vm"
			[firmware]
			features = ["amd-sev"]
			[confidential]
			technology = "sev"
			[latch]
			until = "nothing"
			[[disk]]
			image = "d.raw"
			[[network]]
			mode = "user"`, testhost.Facts()},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := build(t, c.spec, c.facts)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, filepath.Join("testdata/plan", name+".args"), strings.Join(p.Argv, "\n")+"\n")
			b, err := json.MarshalIndent(p, "", " ")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, filepath.Join("testdata/plan", name+".json"), string(b)+"\n")
			again, err := build(t, c.spec, c.facts)
			if err != nil || !slices.Equal(p.Argv, again.Argv) {
				t.Errorf("equal inputs give the plan %q, %v, want %q", again.Argv, err, p.Argv)
			}
		})
	}
}

// TestMatrix compares the command lines of every technology on every QEMU of the
// matrix; where a QEMU cannot, the error is what is compared.
func TestMatrix(t *testing.T) {
	replaced := func(tech, old, with string) string {
		return strings.NewReplacer(`"sev-snp"`, `"`+tech+`"`, old, with).Replace(snpSpec)
	}
	const snpOnly = "policy = [\"smt\", \"abi=1.55\"]\n" +
		"host-data = \"0100000000000000000000000000000000000000000000000000000000000002\""
	specs := map[string]string{
		"sev":     strings.Replace(replaced("sev", snpOnly, ""), `cpu = "EPYC-Genoa"`, "", 1),
		"sev-es":  replaced("sev-es", snpOnly, `policy = ["no-debug", "no-key-sharing", "no-send"]`),
		"sev-snp": snpSpec,
		"tdx": strings.NewReplacer(`cpu = "EPYC-Genoa"`, "", "kernel-hashes = true", "quote-socket = \"/run/qgs\"").
			Replace(replaced("tdx", snpOnly, "mrconfigid = \""+strings.Repeat("0a", 48)+"\"")),
		"mktme": strings.NewReplacer(`cpu = "EPYC-Genoa"`, "", "kernel-hashes = true", "").
			Replace(replaced("mktme", snpOnly, `mktme = { object = "mktme-guest", handle-property = "key-handle" }`)),
	}
	for tech, text := range specs {
		for _, version := range testhost.Versions() {
			t.Run(tech+"@"+version, func(t *testing.T) {
				p, err := build(t, text, testhost.Facts(testhost.WithQEMU(version)))
				got := ""
				if err != nil {
					got = "refused: " + err.Error() + "\n"
				} else {
					got = strings.Join(p.Argv, "\n") + "\n"
				}
				golden(t, filepath.Join("testdata/plan", tech+"@"+version+".args"), got)
			})
		}
	}
	// A patched QEMU, as the adapter of a spec names it.
	f := testhost.Facts()
	f.Info.Objects["mktme-guest"] = []string{"key-handle"}
	p, err := build(t, specs["mktme"], f)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/plan/mktme@patched.args", strings.Join(p.Argv, "\n")+"\n")
}

const (
	snpSpec = testhost.FullSNP
	sevSpec = testhost.FullSEV
)
