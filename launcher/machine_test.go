package launcher

import (
	"encoding/json"
	"flag"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/integration/qemus"
	"github.com/vmlatch/vmlatch/launcher/host"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// machine is a host as the tests have it: one that can do everything.
func machine(change func(*Facts)) Facts {
	f := Facts{
		QEMU: "/usr/bin/qemu-system-x86_64", QEMUFrom: "default", Info: recordedQEMU("11.1"), SlotDir: "/run/vmlatch/.slots", MaxLock: math.MaxUint64,
		Host: &host.Report{
			Kernel: "6.18.0", KVM: host.Technology{Name: "kvm", Usable: host.Yes}, SMT: host.Yes,
			IOMMU: host.IOMMU{Present: host.Yes, Passthrough: host.No},
			SEV:   &host.SEVHost{CBitPos: 51, SNPEnabled: host.No, INIT2: host.Yes, DebugSwap: host.No, CiphertextHiding: 10, SNPAPI: "1.55"},
			TDX:   &host.TDXHost{Enabled: host.Yes, Initialized: host.Yes, KeyIDs: 64},
			Slots: []host.Pool{
				{Name: "sev", Technologies: []string{"sev"}, Total: 410, From: "misc.capacity", InUse: 1},
				{Name: "sev-es", Technologies: []string{"sev-es", "sev-snp"}, Total: 99, From: "misc.capacity", InUse: -1},
			},
		},
	}
	for _, name := range []string{host.SEV, host.SEVES, host.SNP, host.TDX, host.MKTME} {
		f.Host.Technologies = append(f.Host.Technologies, host.Technology{Name: name, Usable: host.Yes})
	}
	for name, text := range map[string]string{
		"10-flash.json":  `{"mapping":{"device":"flash","executable":{"filename":"/fw/CODE.fd","format":"raw"},"nvram-template":{"filename":"/fw/VARS.fd","format":"raw"}},"targets":[{"architecture":"x86_64","machines":["pc-q35-*"]}],"features":["amd-sev"]}`,
		"20-amdsev.json": `{"mapping":{"device":"memory","filename":"/fw/amdsev.fd"},"targets":[{"architecture":"x86_64","machines":["pc-q35-*"]}],"features":["amd-sev","amd-sev-es"]}`,
		"00-secure.json": `{"mapping":{"device":"flash","executable":{"filename":"/fw/SMM.fd","format":"raw"}},"targets":[{"architecture":"x86_64","machines":["pc-q35-*"]}],"features":["requires-smm","secure-boot"]}`,
	} {
		d, _, err := ovmf.ParseDescriptor(name, []byte(text))
		if err != nil {
			panic(err)
		}
		f.Descriptors = append(f.Descriptors, d)
	}
	slices.SortFunc(f.Descriptors, func(a, b ovmf.Descriptor) int { return strings.Compare(a.Path, b.Path) })
	if change != nil {
		change(&f)
	}
	return f
}

// noKVM makes a host one without KVM, and so without what needs it.
func noKVM(why string) func(*Facts) {
	return func(f *Facts) {
		f.Host.KVM = host.Technology{Name: "kvm", Usable: host.No, Why: why}
		for i := range f.Host.Technologies {
			f.Host.Technologies[i].Usable, f.Host.Technologies[i].Why = host.No, why
		}
	}
}

// recordedQEMU is what a QEMU of the matrix said of itself.
func recordedQEMU(version string) *host.QEMU {
	b, err := os.ReadFile(filepath.Join("testdata/qemu", version+".json"))
	if err != nil {
		panic(err)
	}
	var q host.QEMU
	if err := json.Unmarshal(b, &q); err != nil {
		panic(err)
	}
	return &q
}

// TestRecordedQEMUs compares the records with the programs, where those are. Refresh
// them with -update.
func TestRecordedQEMUs(t *testing.T) {
	qemus.Each(t, "7.2", func(t *testing.T, path string) {
		version := filepath.Base(filepath.Dir(filepath.Dir(path)))
		q, err := host.Probe(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		q.Path = "/usr/bin/qemu-system-x86_64"
		b, err := json.MarshalIndent(q, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		golden(t, filepath.Join("testdata/qemu", version+".json"), string(b)+"\n")
	})
}
