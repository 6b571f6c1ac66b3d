package plan_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// planFor works out the start of a spec's first technology; the error is the first
// that comes on the way.
func planFor(text string, f *plan.Facts) (*plan.Plan, error) {
	s, err := tee.Parse([]byte(text), "vm.toml", "/specs")
	if err != nil {
		return nil, err
	}
	g, err := s.For(s.Asked()[0])
	if err != nil {
		return nil, err
	}
	return plan.Build(&g.Guest, g, rundir.Choice{}, f, testhost.Root())
}

func TestDevicesThatMakeNoSense(t *testing.T) {
	for _, c := range []struct{ text, want, fix string }{
		{text: "name = 'a/b'", want: "vm.toml:1:1: name: "},
		{text: "cpus = 0", want: "vm.toml:1:1: cpus: 0: must be 1 to 512"},
		{text: "cpus = -1", want: "cpus: -1: must be 1 to 512"},
		{text: "cpus = 513", want: "cpus: 513: must be 1 to 512"},
		{text: "memory = '15MiB'", want: "memory: 15MiB: must be whole MiB, at least 16MiB"},
		{text: "memory = '16385KiB'", want: "memory: 16385KiB: must be whole MiB"},
		{text: "memory = '65TiB'", want: "memory: 65TiB: must be"},
		{text: "accel = 'kmv'", want: `accel: "kmv": must be auto, kvm or tcg`, fix: `did you mean "kvm"?`},
		{text: "accel = ''", want: `accel: "": must be auto`},
		{text: `machine = "q35\u0000"`, want: `a NUL character in "q35\x00"`},
		{text: `cpu = "a\u0000"`, want: `a NUL character in "a\x00"`},

		{text: "[memory-backend]\ntype = 'file'", want: `2:1: memory-backend.type: "file": must be ram or memfd`},
		{text: "[memory-backend]\nshare = 1", want: "memory-backend.share: must be true or false"},
		{text: "[memory-backend]\nhugepages = '2KiB'", want: "memory-backend.hugepages: 2KiB: must be a page size"},
		{text: "[memory-backend]\nhugepages = '3MiB'", want: "memory-backend.hugepages: 3MiB: must be a page size"},
		{text: "[memory-backend]\nhugepages = '1GiB'", want: "1GiB: must be a page size that divides memory"},
		{
			text: "[memory-backend]\ntype = 'ram'\nhugepages = '2MiB'",
			want: `3:1: memory-backend.hugepages: needs type = "memfd"`,
		},
		{
			text: "[memory-backend]\nprealloc = true\nreserve = false",
			want: "3:1: memory-backend.reserve: false: memory",
		},

		{
			text: "[firmware]\ntype = 'ufei'", want: `firmware.type: "ufei": must be bios or uefi`,
			fix: `did you mean "uefi"?`,
		},
		{text: "[firmware]\nimage = \"a\\u0000\"", want: "a NUL character"},
		{text: "[firmware]\nimage = \"a\"\nvars = \"b\\u0000\"", want: "a NUL character"},
		{text: "[kernel]\ninitrd = 'i'", want: "1:2: kernel: initrd and cmdline need a kernel image"},
		{text: "[kernel]\ncmdline = 'c'", want: "kernel: initrd and cmdline need a kernel image"},
		{text: "[kernel]\nimage = \"a\\u0000\"", want: "a NUL character"},
		{text: "[kernel]\nimage = 'k'\ninitrd = \"a\\u0000\"", want: "a NUL character"},
		{text: "[kernel]\nimage = 'k'\ncmdline = \"a\\u0000\"", want: "a NUL character"},

		{text: "[[disk]]\nformat = 'raw'", want: "disk 1: image is missing"},
		{text: "[[disk]]\nimage = 'a'\n[[disk]]\nimage = ''", want: "disk 2: image is missing"},
		{text: "[[disk]]\nimage = 'a'\nformat = 'vmdk'", want: `disk 1: format "vmdk": must be raw or qcow2`},
		{text: "[[disk]]\nimage = \"a\\u0000\"", want: "a NUL character"},
		{
			text: "[[disk]]\nimage = 'a'\nbus = 'virtoi'", want: `disk 1.bus: "virtoi": must be virtio, scsi`,
			fix: `did you mean "virtio"?`,
		},
		{text: "[[disk]]\nimage = 'a'\ncache = 'none '", want: `disk 1.cache: "none ": must be writeback, none`},
		{text: "[[disk]]\nimage = 'a'\naio = 'native'", want: `disk 1.aio: "native" needs cache = "none"`},
		{text: "[[disk]]\nimage = 'a'\ndiscard = 'on'", want: `disk 1.discard: "on": must be unmap or ignore`},
		{text: "[[disk]]\nimage = 'a'\nserial = 'a,b'", want: `disk 1.serial: "a,b": must be up to 20`},
		{text: "[[disk]]\nimage = 'a'\nserial = '012345678901234567890'", want: "disk 1.serial: "},
		{text: "[[disk]]\nimage = 'a'\nboot = -1", want: "disk 1.boot: -1: must be 1 to 1000"},
		{
			text: "[[disk]]\nimage = 'a'\nboot = 2\n[[disk]]\nimage = 'b'\nboot = 2",
			want: "disk 2.boot: 2: another disk",
		},
		{text: "[[disk]]\nimage = 'a'\niothread = true\nbus = 'nvme'", want: "disk 1.iothread: is for"},
		{text: "[[disk]]\nimage = 'a'\nephemeral = true\nread-only = true", want: "disk 1.ephemeral: nothing"},
		{text: "[[disk]]\nimage = 'a'\nephemeral = true\ncache = 'none'", want: "disk 1.ephemeral: not with"},

		{
			text: "[[network]]\nmode = 'user'\n[[network]]\nmode = 'usr'",
			want: `network 2.mode: "usr": must be user`, fix: `did you mean "user"?`,
		},
		{text: "[[network]]\nmode = 'bridge'", want: `network 1.bridge: "": must be the name of an interface`},
		{text: "[[network]]\nmode = 'tap'\ninterface = '../x'", want: `network 1.interface: "../x": must be the name`},
		{text: "[[network]]\nbridge = 'br0'", want: `network 1.bridge: is not for mode = "user"`},
		{text: "[[network]]\nmode = 'bridge'\nbridge = 'b'\nforward = ['tcp::1:2']", want: "network 1.forward: is not"},
		{text: "[[network]]\nmode = 'passt'\nrestrict = true", want: "network 1.restrict: is not for"},
		{text: "[[network]]\nmode = 'tap'\ninterface = 't'\nvhost = 'yes'", want: `network 1.vhost: "yes": must`},
		{text: "[[pci]]\naddress = '65:00.8'", want: `pci 1.address: "65:00.8": must be an address as lspci`},
		{text: "[[pci]]\naddress = '65:00.0'\n[[pci]]\naddress = '0000:65:00.0'", want: "pci 2.address: 0000:65:00.0"},
		{text: "[[share]]\npath = '.'\ntag = 'a'\nmode = '9pfs'", want: `share 1.mode: "9pfs": must be virtiofs or 9p`},
		{text: "[[share]]\npath = '.'\ntag = 'a'\nread-only = true", want: "share 1.read-only: needs mode"},
		{text: "[[share]]\npath = 'a,b'\ntag = 'a'", want: "share 1.path: \"a,b\": a comma"},
		{
			text: "[memory-backend]\ntype = 'ram'\n[[share]]\npath = '.'\ntag = 'a'",
			want: `share 1.mode: virtiofs needs memory`,
		},
		{text: "[[share]]\ntag = 'a'", want: "share 1.path: is missing"},
		{text: "[[share]]\npath = '.'\ntag = 'a,b'", want: `share 1.tag: "a,b": must be up to 31`},
		{
			text: "[[share]]\npath = '.'\ntag = 'a'\n[[share]]\npath = '/'\ntag = 'a'",
			want: `share 2.tag: "a": another share`,
		},
		{text: "[pin]", want: "pin: is empty"},
		{text: "cpus = 3\n[pin]\ncpus = ['0', '1']", want: "pin.cpus: 2 lists for 3 CPUs"},
		{text: "[pin]\ncpus = ['3-1']", want: `pin: processors "3-1": must be a list`},
		{text: "[pin]\nqemu = '1024'", want: `pin: processors "1024": must be a list`},
		{text: "watchdog = 'rest'", want: `watchdog: "rest": must be reset`, fix: `did you mean "reset"?`},
		{text: "panic = 'reset'", want: `panic: "reset": must be pause`},
		{text: "[display]\nvnc = 'tcp'", want: `display.vnc: "tcp": must be unix`},
		{text: "[config]\n", want: "config: is empty"},
		{text: "[limits]\n", want: "limits: is empty"},
		{text: "[memory-backend]\nnodes = 'x'", want: "memory-backend.nodes: \"x\": must be a list of nodes"},
		{text: "[limits]\nmemory = '575MiB'", want: "limits.memory: 575MiB: must be 64MiB more than the guest's"},
		{text: "[limits]\ncpu = 0.009", want: "limits.cpu: 0.009: must be 0.01 to 512"},
		{text: "[limits]\ncpu = nan", want: "limits.cpu: NaN: must be"},
		{text: "[limits]\ncpu = -1", want: "limits.cpu: -1: must be"},
		{text: "[limits]\ncpu = 513", want: "limits.cpu: 513: must be"},
		{text: "[limits]\npids = 80", want: "limits.pids: 80: must be 81 at least"},
		{text: "[limits]\npids = -1", want: "limits.pids: -1: must be 81"},
		{text: "[limits]\nio = [{read = '1MiB'}]", want: "limits.io: device is missing"},
		{text: "[limits]\nio = [{device = '/dev/sda'}]", want: "limits.io: /dev/sda: needs read"},
		{text: "[limits]\nio = [{device = 'a', read-iops = -1, write = '1KiB'}]", want: "limits.io: a: needs read"},
		{text: "[config]\ncredentials = { 'a/b' = 'f' }", want: `config.credentials: "a/b": must be letters`},
		{text: "[config]\nuser-data = 'credential:x'", want: "config.user-data: "},
		{
			text: "network = [{mode = 'link', peer = 'b'}, {mode = 'link', peer = 'b'}]",
			want: `network 2.peer: "b": another network has it`,
		},
		{
			text: "name = '" + strings.Repeat("a", 60) + "'\nnetwork = [{mode = 'link', peer = '" +
				strings.Repeat("b", 60) + "'}]",
			want: "take shorter names",
		},
		{text: "[[network]]\nmode = 'link'", want: "network 1: a link needs listen = true, connect"},
		{text: "[[network]]\nmode = 'link'\nlisten = true\nconnect = 'b'", want: "network 1: a link needs"},
		{text: "[[network]]\nmode = 'link'\nconnect = '../x'", want: "network 1.connect: "},
		{text: "name = 'a'\n[[network]]\nmode = 'link'\nconnect = 'a'", want: `network 1.connect: "a": is this VM`},
		{
			text: "[[network]]\nmode = 'link'\nlisten = true\n[[network]]\nmode = 'link'\nlisten = true",
			want: "network 2.listen: a VM listens for one",
		},
		{text: "[vsock]\ncid = 2", want: "vsock.cid: 2: must be 3 to 4294967294"},
		{text: "[vsock]\ncid = 4294967295", want: "vsock.cid: 4294967295: must be"},
		{
			text: "[[network]]\nmode = 'user'\nforward = ['tcp:1:2']",
			want: `network 1: forward "tcp:1:2": must be tcp:ADDRESS:PORT:GUESTPORT`,
		},
		{text: "[[network]]\nmode = 'user'\nforward = ['tcp:a:1:2:3']", want: "must be tcp:"},
		{text: "[[network]]\nforward = ['tcp:localhost:1:2']", want: `"localhost" is not an IPv4 address`},
		{text: "[[network]]\nforward = ['udp:1.2.3.4.5:1:2']", want: `"1.2.3.4.5" is not an IPv4 address`},
		{text: "[[network]]\nforward = ['tcp::1:2', 'tcp::1:3']", want: "tcp::1 is forwarded already"},
		{text: "[[network]]\nmac = '52:54:00'", want: `mac "52:54:00": must be six bytes`},
		{text: "[[network]]\nmac = '52-54-00-12-34-56'", want: "must be six bytes"},
		{text: "[[network]]\nmac = '53:54:00:12:34:56'", want: "address of a group"},
		{text: "[[network]]\nmode = 'user'\nforward = ['sctp:a:1:2']", want: "must be tcp:"},
		{text: "[[network]]\nmode = 'user'\nforward = ['tcp::0:22']", want: `"0" is not a port`},
		{text: "[[network]]\nmode = 'user'\nforward = ['tcp::22:0']", want: `"0" is not a port`},
		{text: "[[network]]\nmode = 'user'\nforward = ['udp::65536:22']", want: `"65536" is not a port`},
		{text: "[[network]]\nmode = 'user'\nforward = ['udp::22:ssh']", want: `"ssh" is not a port`},

		{text: "[[device]]\nid = 'a'", want: `device 1: driver must be a device's name, such as "virtio-rng-pci"`},
		{text: "[[device]]\ndriver = ''", want: "device 1: driver must be a device's name"},
		{text: "[[device]]\ndriver = 1", want: "device 1: driver must be a device's name"},
		{text: "[[device]]\ndriver = 'a'\n[[device]]\ndriver = 'b'\nx = nan", want: "device 2: values must be"},
		{text: "[[device]]\ndriver = 'a'\nx = -inf", want: "finite numbers"},
		{text: "[[device]]\ndriver = 'a'\nx = [1, [inf]]", want: "finite numbers"},
		{text: "[[device]]\ndriver = 'a'\nx = { y = { z = nan } }", want: "finite numbers"},
		{text: "[[device]]\ndriver = 'a'\nx = 12:00:00", want: "finite numbers"},
		{text: "[[object]]\nid = 'a'", want: "object 1: qom-type is missing, or not a string"},
		{text: "[[object]]\nqom-type = 'a'", want: "object 1: id is missing, or not a string"},
		{text: "[[object]]\nqom-type = 'a'\nid = 1", want: "object 1: id is missing, or not a string"},
		{text: "[[object]]\nqom-type = ''\nid = 'a'", want: "object 1: qom-type is missing"},
		{text: "[[object]]\nqom-type = 'a'\nid = 'a'\n[[object]]\nx = 2026-01-01", want: "object 2: values must be"},
	} {
		_, err := planFor(c.text, testhost.Facts())
		e := fault.As(err)
		if e == nil || e.Kind != fault.Spec || !strings.HasPrefix(err.Error(), "vm.toml:") ||
			!strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: error %v, want one of vm.toml with %q", c.text, err, c.want)
		} else if c.fix != "" && e.Fix != c.fix {
			t.Errorf("%q: fix %q, want %q", c.text, e.Fix, c.fix)
		}
	}
}

// TestLargestAndSmallest: what lies just within the limits is planned.
func TestLargestAndSmallest(t *testing.T) {
	for _, text := range []string{
		"cpus = 1", "cpus = 512", "memory = '16MiB'", "memory = '64TiB'",
		"[memory-backend]\nhugepages = '4KiB'", "[memory-backend]\nhugepages = '512MiB'",
		"[memory-backend]\nprealloc = true\nreserve = true", "[memory-backend]\nprealloc = false\nreserve = false",
		"[[network]]\nmode = 'user'\nforward = ['tcp::1:65535']",
		"[[device]]\ndriver = 'a'\nx = [1, -2.5, true, 'b', {c = []}]",
	} {
		if _, err := planFor(text, testhost.Facts()); err != nil {
			t.Errorf("%q: %v, want a plan", text, err)
		}
	}
}

// TestPlansThatThisHostRefuses: the spec makes sense, and cannot be carried out here.
func TestPlansThatThisHostRefuses(t *testing.T) {
	noKVM := testhost.NoKVM("/dev/kvm is missing")
	for name, c := range map[string]struct {
		text  string
		facts *plan.Facts
		host  bool
		want  string
	}{
		"KVM that is not there": {
			"accel = 'kvm'", testhost.Facts(noKVM), true, "this host cannot use KVM: /dev/kvm is missing",
		},
		"KVM that cannot be told": {
			"accel = 'kvm'",
			testhost.Facts(func(f *plan.Facts) {
				f.Host.KVM = host.Technology{Usable: host.Unknown, Why: "unreadable"}
			}),
			true, "this host cannot use KVM: unreadable",
		},
		"a confidential guest without KVM": {sevSpec, testhost.Facts(noKVM), true, "this host cannot use KVM"},
		"no firmware with a feature": {
			"[firmware]\nfeatures = ['intel-tdx']", testhost.Facts(), true,
			"this host cannot find firmware: no descriptor on this machine offers uefi, intel-tdx",
		},
		"no firmware at all": {
			"[firmware]\ntype = 'uefi'", testhost.Facts(func(f *plan.Facts) { f.Descriptors = nil }), true,
			"offers uefi",
		},
		"flash for a confidential guest": {
			strings.Replace(sevSpec, "OVMF.amdsev.fd", "OVMF_CODE.fd", 1), testhost.Facts(), false,
			"firmware.image: /specs/OVMF_CODE.fd needs a variable store, which is not measured",
		},
		"no memfd": {
			snpSpec, testhost.Facts(func(f *plan.Facts) { delete(f.Info.Objects, "memory-backend-memfd") }), true,
			"this host cannot give the guest memory: QEMU 11.1.3 (" + qemu + ") has no object memory-backend-memfd",
		},
		"no object": {
			snpSpec, testhost.Facts(func(f *plan.Facts) { delete(f.Info.Objects, "sev-snp-guest") }), true,
			"has no object sev-snp-guest (QEMU 9.1 or newer has it)",
		},
		"no property": {
			sevSpec,
			testhost.Facts(func(f *plan.Facts) { f.Info.Objects["sev-guest"] = host.Names{"cbitpos", "policy"} }), true,
			"has no property dh-cert-file of sev-guest",
		},
		"an IGVM file for a plain guest": {
			"[firmware]\nimage = 'fw'", testhost.Facts(testhost.WithIGVM), false,
			"firmware.image: /specs/fw: an IGVM file is for confidential guests",
		},
		"an IGVM file next to a kernel": {
			snpSpec, testhost.Facts(testhost.WithIGVM), false, "kernel.image: an IGVM file brings all",
		},
		"an IGVM file next to an ID block": {
			strings.Replace(igvmSpec, "[latch]", "id-block = 'b'\nid-auth = 'a'\n[latch]", 1),
			testhost.Facts(testhost.WithIGVM), false,
			"confidential.id-block: QEMU takes policy and ID block from the IGVM file",
		},
		"a QEMU without IGVM": {
			igvmSpec, testhost.Facts(func(f *plan.Facts) { f.IGVM = true }), true,
			"this host cannot load the IGVM file /specs/fw: QEMU 11.1.3 (" + qemu + ") has no object igvm-cfg",
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := planFor(c.text, c.facts)
			if err == nil || p != nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("plan %v, error %v, want one with %q", p, err, c.want)
			}
			if got := errors.Is(err, fault.ErrHost); got != c.host {
				t.Errorf("%v: the host's fault: %t, want %t", err, got, c.host)
			}
		})
	}
}

const qemu = "/usr/bin/qemu-system-x86_64"

// igvmSpec is a guest that an IGVM file suffices for.
var igvmSpec = strings.NewReplacer("kernel-hashes = true", "", "[kernel]", "", `image = "k"`, "").
	Replace(snpSpec)

func TestWhatAQEMULacks(t *testing.T) {
	object := plan.Object{
		Type:       "sev-guest",
		Since:      "2.12",
		Properties: map[string]string{"legacy-vm-type": "9.1"},
	}
	unreleased := plan.Object{Type: "mktme-guest"}
	old := testhost.Facts(testhost.WithQEMU("7.2"))
	for name, c := range map[string]struct {
		facts       *plan.Facts
		object      plan.Object
		properties  []string
		want, fixes string
	}{
		"nothing": {old, object, []string{"policy", "kernel-hashes"}, "", ""},
		"a property": {
			old, object,
			[]string{"policy", "legacy-vm-type"},
			"has no property legacy-vm-type of sev-guest (QEMU 9.1 or newer", "QEMU 9.1",
		},
		"a property of unknown age": {
			old, object, []string{"nope"}, "has no property nope of sev-guest", "no released QEMU has it",
		},
		"an object": {
			old,
			plan.Object{Type: "tdx-guest", Since: "10.1"},
			nil,
			"QEMU 7.2.22 (" + qemu + ") has no object tdx-guest (QEMU 10.1 or newer", "install QEMU 10.1 or newer",
		},
		"an object that no release has": {old, unreleased, nil, "has no object mktme-guest", "no released QEMU has it"},
		"a QEMU that was not asked": {
			&plan.Facts{QEMU: "/q"}, object, nil, "QEMU of unknown version (/q) has no object sev-guest", "2.12",
		},
	} {
		err := c.facts.Needs("try", c.object, c.properties...)
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v, want no error", name, err)
			}
			continue
		}
		e := fault.As(err)
		if e == nil || e.Kind != fault.Host || e.Check != "qemu-object" || !strings.Contains(e.Fix, c.fixes) ||
			!strings.Contains(err.Error(), c.want) ||
			!strings.HasPrefix(err.Error(), "this host cannot try: ") {
			t.Errorf(
				"%s: %v with fix %q, want one with %q and %q",
				name,
				err,
				fixOf(e),
				c.want,
				c.fixes,
			)
		}
	}
}

func fixOf(e *fault.Error) string {
	if e == nil {
		return ""
	}
	return e.Fix
}
