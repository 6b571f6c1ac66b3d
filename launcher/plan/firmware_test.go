package plan_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
	"github.com/vmlatch/vmlatch/launcher/plan"
)

// TestFirmwareByDescriptors: the first descriptor that fits is taken, but for what the
// spec has not asked for: the first of all needs SMM.
func TestFirmwareByDescriptors(t *testing.T) {
	for text, want := range map[string]string{
		"firmware.type = 'uefi'":                                                 "/fw/CODE.fd",
		"firmware = {type = 'uefi', features = ['secure-boot']}":                 "",
		"firmware = {type = 'uefi', features = ['requires-smm']}":                "/fw/SMM.fd",
		"firmware = {features = ['requires-smm', 'secure-boot']}":                "/fw/SMM.fd",
		"firmware.features = ['amd-sev']":                                        "/fw/CODE.fd",
		"firmware.features = ['amd-sev-es']":                                     "/fw/amdsev.fd",
		"firmware.features = ['enrolled-keys']":                                  "",
		"machine = 'pc'\nfirmware.type = 'uefi'":                                 "", // descriptors are for q35
		"firmware.features = ['amd-sev']\n[confidential]\n" + sevUnverified:      "/fw/amdsev.fd",
		"firmware.features = ['requires-smm']\n[confidential]\n" + sevUnverified: "",
	} {
		p, err := planFor(text, testhost.Facts())
		if want == "" {
			if err == nil || !strings.Contains(err.Error(), "find firmware") {
				t.Errorf("%q: error %v, want one about firmware", text, err)
			}
			continue
		}
		if err != nil || p.Files[0].Path != want {
			t.Errorf("%q: %+v, %v, want %s", text, p, err, want)
		}
	}
}

// TestSecureBootFirmware: it is found by its keys, writes its variables in system management mode
// alone, and keeps them with the VM's name.
func TestSecureBootFirmware(t *testing.T) {
	enrolled := testhost.Facts(func(f *plan.Facts) {
		for i := range f.Descriptors {
			if d := &f.Descriptors[i]; d.Image == "/fw/SMM.fd" {
				d.Features, d.VarsImage = append(d.Features, "enrolled-keys"), "/fw/KEYS.fd"
			}
		}
	})
	p, err := planFor("firmware.secure-boot = true", enrolled)
	if err != nil {
		t.Fatal(err)
	}
	line := strings.Join(p.Argv, " ")
	for _, want := range []string{
		"/fw/SMM.fd", "smm=on", "driver=cfi.pflash01,property=secure,value=on", "/var/lib/vmlatch/vm/vars.fd",
	} {
		if !strings.Contains(line, want) {
			t.Errorf("the command line lacks %s: %s", want, line)
		}
	}
	want := plan.Copy{
		From: "/fw/KEYS.fd",
		To:   "/var/lib/vmlatch/vm/vars.fd",
		Use:  "firmware variables, kept",
		Keep: true,
	}
	if len(p.Copies) != 1 || p.Copies[0] != want {
		t.Errorf("copies %+v, want %+v", p.Copies, want)
	}
	own, err := planFor("firmware = {secure-boot = true, image = 'f', vars = 'v'}", testhost.Facts())
	if err != nil || len(own.Copies) != 0 || !strings.Contains(strings.Join(own.Argv, " "), "smm=on") {
		t.Errorf("own files: %+v, %v", own, err)
	}
	for text, want := range map[string]string{
		"firmware = {secure-boot = true, type = 'bios'}":                           "Secure Boot is of UEFI",
		"firmware = {secure-boot = true, image = 'f'}":                             "name the file that belongs",
		"firmware = {secure-boot = true, vars = 'v'}":                              "vars belong to an image",
		"machine = 'pc'\nfirmware = {secure-boot = true, image = 'f', vars = 'v'}": "needs q35",
	} {
		if _, err := planFor(text, enrolled); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if _, err := planFor("firmware.secure-boot = true", testhost.Facts()); err == nil {
		t.Error("firmware without keys is taken")
	}
}

const sevUnverified = "technology = 'sev'\n[latch]\nuntil = 'nothing'"

// TestEnrolledKeysAreNotTakenUnasked: they decide which kernels boot.
func TestEnrolledKeysAreNotTakenUnasked(t *testing.T) {
	keys := testhost.Facts(func(f *plan.Facts) {
		for i := range f.Descriptors {
			f.Descriptors[i].Features = append(f.Descriptors[i].Features, "enrolled-keys")
		}
	})
	if _, err := planFor("firmware.type = 'uefi'", keys); err == nil {
		t.Error("firmware with enrolled keys is taken, want it asked for by name")
	}
	if _, err := planFor("firmware.features = ['enrolled-keys']", keys); err != nil {
		t.Errorf("firmware with enrolled keys that is asked for: %v", err)
	}
}

func TestFirmwareIsLookedUpWhereNoImageIsNamed(t *testing.T) {
	for want, list := range map[bool][]plan.Firmware{
		true:  {{Type: "uefi"}, {Features: []string{"x"}}, {Type: "uefi", Features: []string{"x"}}},
		false: {{}, {Type: "bios"}, {Image: "f"}, {Image: "f", Type: "uefi"}, {Image: "f", Features: []string{"x"}}},
	} {
		for _, f := range list {
			if got := f.Lookup(); got != want {
				t.Errorf("%+v is looked up: %t, want %t", f, got, want)
			}
		}
	}
}

// TestFilesOfAPlan: what QEMU reads, and which of it is measured.
func TestFilesOfAPlan(t *testing.T) {
	for name, c := range map[string]struct {
		text   string
		want   []plan.File
		copies []plan.Copy
		inputs string // firmware, kernel, initrd
	}{
		"nothing": {"", nil, nil, "||"},
		"all of a plain VM": {
			"firmware = {image = 'f', vars = 'v'}\nkernel = {image = 'k', initrd = 'i'}\ndisk = [{image = 'd'}]",
			[]plan.File{
				{"/specs/f", "firmware code", false},
				{"/specs/v", "firmware variables, written by the guest", false},
				{"/specs/k", "kernel", false},
				{"/specs/i", "initrd", false},
				{"/specs/d", "disk", false},
			},
			nil, "|/specs/k|/specs/i",
		},
		"firmware by type": {
			"firmware.type = 'uefi'",
			[]plan.File{{"/fw/CODE.fd", "firmware code", false}},
			[]plan.Copy{{
				From: "/fw/VARS.fd", To: "/run/vmlatch/vm/vars.fd", Use: "firmware variables, for this run only",
			}},
			"||",
		},
		"a measured guest": {
			sevSpec,
			[]plan.File{
				{
					"/specs/OVMF.amdsev.fd", "firmware", true,
				}, {
					"/specs/vmlinuz", "kernel",
					true,
				}, {
					"/specs/initrd,1.img", "initrd", true,
				},
			},
			nil, "/specs/OVMF.amdsev.fd|/specs/vmlinuz|/specs/initrd,1.img",
		},
		"one whose kernel is not": {
			strings.Replace(snpSpec, "kernel-hashes = true", "kernel-hashes = false", 1),
			[]plan.File{{"/specs/fw", "firmware", true}, {"/specs/k", "kernel", false}},
			nil, "/specs/fw|/specs/k|",
		},
		"a plain firmware image": {
			"firmware.image = 'f'", []plan.File{{"/specs/f", "firmware", false}}, nil, "/specs/f||",
		},
	} {
		p := mustPlan(t, c.text, testhost.Facts())
		if diff := cmp.Diff(c.want, p.Files); diff != "" {
			t.Errorf("%s: files (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff(c.copies, p.Copies); diff != "" {
			t.Errorf("%s: copies (-want +got):\n%s", name, diff)
		}
		in := p.Inputs()
		if got := strings.Join([]string{in.Firmware, in.Kernel, in.Initrd}, "|"); got != c.inputs {
			t.Errorf("%s: measured inputs %s, want %s", name, got, c.inputs)
		}
	}
	in := mustPlan(t, sevSpec, testhost.Facts()).Inputs()
	if !in.KernelHashes || in.Cmdline != "console=ttyS0 a,b" {
		t.Errorf("kernel hashes %t of %q, want true of the spec's command line", in.KernelHashes, in.Cmdline)
	}
}
