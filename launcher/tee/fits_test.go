package tee_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// TestFits: what keeps a technology from being used here.
func TestFits(t *testing.T) {
	image := func(i *plan.Image) func(*plan.Facts) { return func(f *plan.Facts) { f.Image = i } }
	cannot := func(usable host.Answer) func(*plan.Facts) {
		return func(f *plan.Facts) {
			for i := range f.Host.Technologies {
				t := &f.Host.Technologies[i]
				t.Usable, t.Why, t.Fix = usable, "no such bit", "set it"
			}
		}
	}
	snpHost := func(f *plan.Facts) { f.Host.SEV.SNPEnabled = host.Yes }
	emulated := testhost.Emulated("swtee")
	lacking := &plan.Image{HashArea: true, Lacks: map[string]string{"sev-snp": "it has no SEV metadata"}}
	for _, c := range []struct {
		name, tech string
		among      bool
		facts      *plan.Facts
		want       string
	}{
		{"a good host", "sev", false, testhost.Facts(), ""},
		{"a good host", "none", false, testhost.Facts(), ""},
		{"a host that cannot", "sev", false, testhost.Facts(cannot(host.No)), "encrypt memory with sev: no such bit"},
		{"a host that cannot", "tdx", true, testhost.Facts(cannot(host.No)), "encrypt memory with tdx: no such bit"},
		{"a host that cannot", "none", false, testhost.Facts(cannot(host.No)), ""},
		{"a host that does not tell", "sev", false, testhost.Facts(cannot(host.Unknown)), ""},
		{"a host that cannot, emulated", "sev", false, testhost.Facts(cannot(host.No), emulated), ""},
		{"a plain VM, emulated", "none", false, testhost.Facts(emulated), "there is nothing to emulate"},
		{
			"an old QEMU", "sev-snp", false, testhost.Facts(testhost.WithQEMU("7.2")),
			"launch a guest of technology sev-snp: QEMU 7.2",
		},
		{"a QEMU without a patch", "mktme", false, testhost.Facts(), "has no object mktme-guest"},
		{"a patched QEMU", "mktme", false, testhost.Facts(withMKTME), ""},
		{"a QEMU without a patch, emulated", "mktme", false, testhost.Facts(emulated), ""},
		{"a host of SEV-SNP", "sev", true, testhost.Facts(snpHost), "take sev by choice"},
		{"a host of SEV-SNP", "sev-es", true, testhost.Facts(snpHost), "take sev-es by choice"},
		{"a host of SEV-SNP", "sev-snp", true, testhost.Facts(snpHost), ""},
		{"a host of SEV-SNP, without a choice", "sev", false, testhost.Facts(snpHost), ""},
		{"a host of SEV-SNP, emulated", "sev", true, testhost.Facts(snpHost, emulated), ""},
		{"a host that may run SEV-SNP", "sev", true, testhost.Facts(), ""},
		{"an Intel host", "sev", true, testhost.Facts(func(f *plan.Facts) { f.Host.SEV = nil }), ""},
		{
			"an image without tables", "sev-snp", true, testhost.Facts(image(lacking)),
			"/specs/fw: it has no SEV metadata",
		},
		{"an image without tables, without a choice", "sev-snp", false, testhost.Facts(image(lacking)), ""},
		{"an image without another's tables", "sev", true, testhost.Facts(image(lacking)), ""},
		{
			"an image without hashes", "sev", true, testhost.Facts(image(&plan.Image{})),
			"it has no area for kernel hashes",
		},
		{"an image without hashes, for no kernel", "sev-es", true, testhost.Facts(image(&plan.Image{})), ""},
		{"an IGVM file", "sev-snp", true, testhost.Facts(image(&plan.Image{IGVM: true})), ""},
	} {
		g := mustGuest(t, specOf(c.tech))
		err := g.Fits(c.facts, c.among)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s, %s: %v, want an error with %q", c.name, c.tech, err, c.want)
		}
		if e := fault.As(err); e != nil && strings.Contains(c.want, "no such bit") &&
			(!e.Hardware || e.Fix != "set it" || e.Check != "technology-usable" || !errors.Is(err, fault.ErrHost)) {
			t.Errorf("%s, %s: %#v, want the host's error, which an emulator would help", c.name, c.tech, e)
		}
	}
}

func TestKnows(t *testing.T) {
	old := testhost.Facts(testhost.WithQEMU("7.2"))
	for tech, want := range map[string]bool{
		"sev": true, "sev-es": true, "sev-snp": false, "tdx": false, "mktme": false,
	} {
		if err := mustGuest(t, specOf(tech)).Knows(old); (err == nil) != want {
			t.Errorf("QEMU 7.2 knows %s: %v, want %t", tech, err, want)
		}
	}
}

// TestGuestsThatAreChanged after they were checked do not get a weaker plan: what cannot
// be read is an error there, too.
func TestGuestsThatAreChanged(t *testing.T) {
	bad := []string{"unheard-of"}
	for name, c := range map[string]struct {
		tech   string
		change func(*tee.Confidential)
		query  bool // fails, too
	}{
		"a policy of SEV":     {"sev", func(c *tee.Confidential) { c.Policy = bad }, true},
		"a policy of SEV-SNP": {"sev-snp", func(c *tee.Confidential) { c.Policy = bad }, true},
		"attributes":          {"tdx", func(c *tee.Confidential) { c.Policy = bad }, false},
		"host's data":         {"sev-snp", func(c *tee.Confidential) { c.HostData = "00" }, false},
		"an id":               {"tdx", func(c *tee.Confidential) { c.MROwner = "00" }, false},
	} {
		g := mustGuest(t, specOf(c.tech))
		good, err := planOf(g, testhost.Facts())
		if err != nil {
			t.Fatal(err)
		}
		c.change(&g.Confidential)
		if p, err := planOf(g, testhost.Facts()); err == nil {
			t.Errorf("%s: %q, want an error", name, p.Argv)
		}
		q := script{"query-sev": `{"enabled":true,"sev-type":"sev-snp","state":"launch-secret"}`}
		if got, err := g.Query(t.Context(), good, q); c.query && (err == nil ||
			!strings.Contains(err.Error(), "unheard-of")) {
			t.Errorf("%s: %+v, %v, want an error about unheard-of", name, got, err)
		}
	}
}
