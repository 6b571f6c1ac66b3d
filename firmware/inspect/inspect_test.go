package inspect

import (
	"bytes"
	"encoding/xml"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/ffs/ffstest"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/ovmf/ovmftest"
)

func image(t testing.TB, b []byte) *ovmf.Image {
	t.Helper()
	img, err := ovmf.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestImage(t *testing.T) {
	b := ovmftest.AmdSev()
	r, err := Image(image(t, b))
	if err != nil {
		t.Fatal(err)
	}
	region := func(what string) Region {
		i := slices.IndexFunc(r.Regions, func(r Region) bool { return r.What == what })
		if i < 0 {
			t.Fatalf("no region %s among %+v", what, r.Regions)
		}
		return r.Regions[i]
	}
	for what, want := range map[string][4]Cover{
		"volume variables":           {Contents, Contents, Contents, Presence},
		"volume FFS2":                {Contents, Contents, Contents, Contents},
		"kernel hash area":           {Contents, Contents, Nothing, Nothing},
		"launch secret area":         {Nothing, Nothing, Nothing, Nothing},
		"SNP section: kernel hashes": {Nothing, Nothing, Contents, Nothing},
		"SNP section: CPUID":         {Nothing, Nothing, Presence, Nothing},
		"TDX section: TD HOB":        {Nothing, Nothing, Nothing, Presence},
	} {
		got := region(what)
		for i, tech := range Technologies() {
			if got.Cover[tech] != want[i] {
				t.Errorf("%s under %s: %s, want %s", what, tech, got.Cover[tech], want[i])
			}
		}
	}
	total := uint64(0)
	for _, x := range r.Regions {
		if x.Image {
			total += x.Size
		}
	}
	if total != uint64(len(b)) {
		t.Errorf("the image's regions have %d bytes of %d", total, len(b))
	}
	if r.Digests["sev-snp-pages"] == "" || len(r.Entries) != 5 {
		t.Errorf("digests %v and %d entries, want sev-snp-pages among them and 5", r.Digests, len(r.Entries))
	}
	var svg strings.Builder
	if err := r.Map(&svg, "a <b> & c"); err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(strings.NewReader(svg.String())); ; {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("the map is not XML: %v", err)
		}
	}
}

func TestDiff(t *testing.T) {
	b := ovmftest.AmdSev()
	vars := bytes.Clone(b)
	vars[0x1000] ^= 1 // in the variables, which TDX does not measure
	d, err := Diff(image(t, b), image(t, vars))
	if err != nil || d.Same || len(d.Changes) != 1 || !d.Digests["sev"] || !d.Digests["sev-snp"] || d.Digests["tdx"] {
		t.Errorf("%+v, %v", d, err)
	}
	build := func(x ffstest.Build) *ovmf.Image { return image(t, ffstest.Measuring(t, x)) }
	d, err = Diff(build(ffstest.Build{Version: "1.0"}), build(ffstest.Build{Version: "1.1", Driver: "x"}))
	if err != nil || len(d.Modules) != 2 || d.Modules[0].Name != "Tcg2Pei" || d.Modules[1].Name != "Driver" {
		t.Errorf("%+v, %v; want Tcg2Pei and Driver to differ", d.Modules, err)
	}
	if d, err = Diff(image(t, b), image(t, b)); err != nil || !d.Same || len(d.Changes) != 0 || d.Digests["sev"] {
		t.Errorf("%+v, %v", d, err)
	}
}

// TestModules: a file is known by its name, with what covers it.
func TestModules(t *testing.T) {
	r, err := Image(image(t, ffstest.Measuring(t, ffstest.Build{Version: "1.0", SecureBoot: true})))
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(r.Modules, func(m Module) bool { return m.Name == "BdsDxe" })
	if i < 0 || r.Version != "1.0" || !r.SecureBoot.Code || r.SecureBoot.On {
		t.Fatalf("version %q, %+v, %+v", r.Version, r.SecureBoot, r.Modules)
	}
	m := r.Modules[i]
	if m.Cover["sev"] != Contents || m.Cover[TPM] != Contents || !strings.Contains(m.Volume, " > 7cb8bdc9-") {
		t.Errorf("%+v", m)
	}
	if outer := r.Modules[0]; outer.Cover[TPM] != Nothing || outer.Sections[0] != "packed by LZMA" {
		t.Errorf("%+v", outer)
	}
	r, err = Image(image(t, ovmftest.WithPlatformKey()))
	if err != nil || len(r.Variables) != 1 || r.Variables[0].Name != "PK" || len(r.Variables[0].Keys) != 1 {
		t.Errorf("%+v, %v; want PK with what its key is", r.Variables, err)
	}
}

func FuzzImage(f *testing.F) {
	f.Add([]byte("x"))
	f.Add(ovmftest.AmdSev())
	f.Fuzz(func(t *testing.T, b []byte) {
		img, err := ovmf.Parse(b)
		if err != nil {
			return
		}
		if r, err := Image(img); err == nil {
			if err := r.Map(io.Discard, "x"); err != nil {
				t.Error(err)
			}
		}
	})
}
