// Package testhost is a host for tests of the launcher: what it has, what its QEMUs
// told about themselves, and specs that work on it.
package testhost

import (
	"embed"
	"encoding/json"
	"math"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/launcher/confine"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// Facts are a host as the tests have it: one that can do everything.
func Facts(changes ...func(*plan.Facts)) *plan.Facts {
	f := &plan.Facts{
		QEMU: "/usr/bin/qemu-system-x86_64", QEMUFrom: "default", Info: QEMU("11.1"),
		SlotDir: "/run/vmlatch/.slots", MaxLock: math.MaxUint64, Passt: "/usr/bin/passt",
		TPM: &plan.TPMProgram{Program: "/usr/bin/swtpm", Keeper: "/usr/bin/vmlatch"},
		Host: &host.Report{
			Kernel: "6.18.0", KVM: host.Technology{Name: "kvm", Usable: host.Yes}, SMT: host.Yes,
			IOMMU: host.IOMMU{Present: host.Yes, Passthrough: host.No},
			SEV: &host.SEVHost{
				CBitPos: 51, SNPEnabled: host.No, INIT2: host.Yes, DebugSwap: host.No, CiphertextHiding: 10,
				SNPAPI: "1.55",
			},
			TDX: &host.TDXHost{Enabled: host.Yes, Initialized: host.Yes, KeyIDs: 64},
			Slots: []host.Pool{
				{Name: "sev", Technologies: []string{"sev"}, Total: 410, From: "misc.capacity", InUse: 1},
				{
					Name:         "sev-es",
					Technologies: []string{"sev-es", "sev-snp"},
					Total:        99,
					From:         "misc.capacity",
					InUse:        -1,
				},
			},
		},
	}
	for _, name := range []string{host.SEV, host.SEVES, host.SNP, host.TDX, host.MKTME} {
		f.Host.Technologies = append(f.Host.Technologies, host.Technology{Name: name, Usable: host.Yes})
	}
	for _, d := range []struct{ name, mapping, features string }{
		{"10-flash.json", `"device":"flash","executable":{"filename":"/fw/CODE.fd","format":"raw"},` +
			`"nvram-template":{"filename":"/fw/VARS.fd","format":"raw"}`, `"amd-sev"`},
		{"20-amdsev.json", `"device":"memory","filename":"/fw/amdsev.fd"`, `"amd-sev","amd-sev-es"`},
		{
			"00-secure.json", `"device":"flash","executable":{"filename":"/fw/SMM.fd","format":"raw"}`,
			`"requires-smm","secure-boot"`,
		},
	} {
		const targets = `[{"architecture":"x86_64","machines":["pc-q35-*"]}]`
		text := `{"mapping":{` + d.mapping + `},"targets":` + targets + `,"features":[` + d.features + `]}`
		parsed, _, err := ovmf.ParseDescriptor(d.name, []byte(text))
		if err != nil {
			panic(err)
		}
		f.Descriptors = append(f.Descriptors, parsed)
	}
	slices.SortFunc(f.Descriptors, func(a, b ovmf.Descriptor) int { return strings.Compare(a.Path, b.Path) })
	for _, change := range changes {
		change(f)
	}
	return f
}

// Root is where the host's VMs live.
func Root() rundir.Root { return rundir.Root{Run: "/run/vmlatch", State: "/var/lib/vmlatch"} }

// NoKVM makes a host one without KVM, and so without what needs it.
func NoKVM(why string) func(*plan.Facts) {
	return func(f *plan.Facts) {
		f.Host.KVM = host.Technology{Name: "kvm", Usable: host.No, Why: why}
		for i := range f.Host.Technologies {
			f.Host.Technologies[i].Usable, f.Host.Technologies[i].Why = host.No, why
		}
	}
}

// Emulated puts an emulator before QEMU.
func Emulated(argv ...string) func(*plan.Facts) { return func(f *plan.Facts) { f.Emulator = argv } }

// WithQEMU takes another QEMU.
func WithQEMU(version string) func(*plan.Facts) {
	return func(f *plan.Facts) { f.Info = QEMU(version) }
}

// Versions are those of the QEMUs that were recorded.
func Versions() []string { return []string{"7.2", "10.0", "11.1"} }

//go:embed testdata/qemu
var qemus embed.FS

// QEMU is what a QEMU told about itself.
func QEMU(version string) *host.QEMU {
	b, err := qemus.ReadFile("testdata/qemu/" + version + ".json")
	if err != nil {
		panic(err)
	}
	var q host.QEMU
	if err := json.Unmarshal(b, &q); err != nil {
		panic(err)
	}
	return &q
}

// WithIGVM is a QEMU that was built with libigvm.
func WithIGVM(f *plan.Facts) {
	f.IGVM, f.Info = true, QEMU("11.1")
	f.Info.Objects["igvm-cfg"] = []string{"file"}
}

// Confined has QEMU confined, by a kernel that can do all of it.
func Confined(f *plan.Facts) {
	f.Confine = &plan.Confinement{
		Stage: []string{"/usr/bin/vmlatch", plan.Stage}, Host: confine.Host{Landlock: 7},
		Program: []confine.File{{Path: "/usr", Access: confine.Execute}}, Resolver: []string{"/etc/resolv.conf"},
	}
}
