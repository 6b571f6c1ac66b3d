package plan_test

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/firstboot"
	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
	"github.com/vmlatch/vmlatch/launcher/plan"
)

// TestMeasuredConfig: what configures a confidential guest stands before its initrd, in a copy that
// can no longer be changed, and nowhere else; without a measured initrd nothing does.
func TestMeasuredConfig(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"u": "#cloud-config\n", "c": "secret", "i": "an initrd"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	config := "[config]\nuser-data = \"" + file("u") + "\"\ncredentials = { a = \"" + file("c") + "\" }\n"
	with := func(spec string, pairs ...string) string { return strings.NewReplacer(pairs...).Replace(spec) + config }
	const bare, initrd = `image = "k"`, "image = \"k\"\ninitrd = "
	const tdx = "[firmware]\nimage = \"fw\"\n[kernel]\nimage = \"k\"\n[confidential]\ntechnology = \"tdx\"\n" +
		"[latch]\nuntil = \"nothing\"\n"
	withInitrd := []string{bare, initrd + `"` + file("i") + `"`}
	for name, tt := range map[string]struct {
		spec     string
		facts    *plan.Facts
		measured bool
	}{
		"sev-snp":           {with(snpSpec, withInitrd...), testhost.Facts(), true},
		"sev-snp, confined": {with(snpSpec, withInitrd...), testhost.Facts(testhost.Confined), true},
		"sev": {
			with(sevSpec, `initrd = "initrd,1.img"`, `initrd = "`+file("i")+`"`), testhost.Facts(), true,
		},
		"tdx": {with(tdx, withInitrd...), testhost.Facts(), true},
		"no hashes": {
			with(snpSpec, append(withInitrd, "kernel-hashes = true", "kernel-hashes = false")...),
			testhost.Facts(), false,
		},
		"no initrd": {with(snpSpec), testhost.Facts(), false},
		"plain, with initrd": {
			"[kernel]\nimage = \"k\"\ninitrd = \"" + file("i") + "\"\n" + config, testhost.Facts(), false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := mustPlan(t, tt.spec, tt.facts)
			line := strings.Join(p.Argv, "\n")
			if got := strings.Contains(line, "-smbios") || strings.Contains(line, "serial=cidata"); got == tt.measured {
				t.Errorf("a disk or tables: %v", got)
			}
			covered := slices.Contains(p.Covers.Covered, "configuration of the first boot")
			if covered != tt.measured || (p.Inputs().Config != nil) != tt.measured {
				t.Errorf("covered %v, input %v, want %v", p.Covers.Covered, p.Inputs().Config, tt.measured)
			}
			for _, f := range p.Files {
				if (f.Path == file("u") || f.Path == file("c")) && f.Measured != tt.measured {
					t.Errorf("%+v", f)
				}
			}
			if !tt.measured {
				return
			}
			_, o := opening(t)
			f := open(t, p.FDs, "initrd", o)
			b, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
			if err != nil {
				t.Fatal(err)
			}
			c := firstboot.Config{UserData: file("u"), Credentials: map[string]string{"a": file("c")}}
			content, err := c.Read()
			if err != nil {
				t.Fatal(err)
			}
			if want := string(content.Archive()) + "an initrd"; string(b) != want {
				t.Errorf("the guest gets %q, want %q", b, want)
			}
			if size, err := p.Guest.InitrdSize(p.Traits); err != nil || size != int64(len(b)) {
				t.Errorf("its size is %d, %v, want %d", size, err, len(b))
			}
			if _, err := unix.Pwrite(int(f.Fd()), []byte("x"), 0); err == nil {
				t.Error("the copy can be changed")
			}
		})
	}
}
