package plan_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// mustPlan is planFor where there is a plan.
func mustPlan(t testing.TB, text string, f *plan.Facts) *plan.Plan {
	t.Helper()
	p, err := planFor(text, f)
	if err != nil {
		t.Fatalf("%s\n%v", text, err)
	}
	return p
}

// flash is the value of -blockdev for a file of firmware.
func flash(file, node string, readOnly bool) string {
	return fmt.Sprintf(`{"driver":"raw","file":{"driver":"file","filename":%q},"node-name":%q,"read-only":%t}`,
		file, node, readOnly)
}

// blockdev is the value of -blockdev for a disk, whose image is a descriptor.
func blockdev(driver string, fd int, node string, readOnly bool) string {
	backing, discard := "", ""
	if driver == "qcow2" {
		backing = `"backing":null,`
	}
	if !readOnly {
		discard = `"discard":"unmap",`
	}
	return fmt.Sprintf(`{`+backing+`%s"driver":%q,"file":{%s"driver":"file",`+
		`"filename":"/dev/fdset/%d","read-only":%t},"node-name":%q,"read-only":%t}`,
		discard, driver, discard, fd, readOnly, node, readOnly)
}

// TestOptionsOfDevices: what a spec says becomes these options, in this order, and no
// others of their kind.
func TestOptionsOfDevices(t *testing.T) {
	for name, c := range map[string]struct {
		text   string
		option string
		want   []string
	}{
		"no network":     {"", "-netdev", nil},
		"no disk":        {"", "-blockdev", nil},
		"no device":      {"", "-device", nil},
		"no object":      {"", "-object", nil},
		"no kernel":      {"", "-kernel", nil},
		"no firmware":    {"", "-bios", nil},
		"memory":         {"memory = '3GiB'", "-m", []string{"3072"}},
		"CPUs":           {"cpus = 7", "-smp", []string{"7"}},
		"CPU":            {"cpu = 'EPYC,+avx'", "-cpu", []string{"EPYC,+avx"}},
		"tcg":            {"accel = 'tcg'", "-accel", []string{"tcg"}},
		"tcg's CPU":      {"accel = 'tcg'", "-cpu", []string{"max"}},
		"KVM":            {"", "-accel", []string{"kvm"}},
		"KVM's CPU":      {"", "-cpu", []string{"host"}},
		"kernel":         {"kernel.image = 'k'", "-kernel", []string{"/specs/k"}},
		"no initrd":      {"kernel.image = 'k'", "-initrd", nil},
		"no words":       {"kernel.image = 'k'", "-append", nil},
		"initrd":         {"kernel = {image = 'k', initrd = '/i,j'}", "-initrd", []string{"/i,j"}},
		"kernel's words": {"kernel = {image = 'k', cmdline = 'a,b c'}", "-append", []string{"a,b c"}},

		"devices with and without an id": {
			"device = [{driver = 'a'}, {driver = 'b', id = 'c'}, {driver = 'd', x = {y = [1]}}]", "-device",
			[]string{
				`{"driver":"a","id":"extra0"}`, `{"driver":"b","id":"c"}`,
				`{"driver":"d","id":"extra2","x":{"y":[1]}}`,
			},
		},
		"objects": {
			"object = [{qom-type = 'a', id = 'x'}, {qom-type = 'b', id = 'y', z = true}]", "-object",
			[]string{`{"id":"x","qom-type":"a"}`, `{"id":"y","qom-type":"b","z":true}`},
		},
		"disks, by their names": {
			"disk = [{image = 'a.qcow2'}, {image = 'a,b.img'}, {image = '/c', format = 'qcow2', read-only = true}]",
			"-blockdev",
			[]string{
				blockdev("qcow2", 3, "disk0", false),
				blockdev("raw", 4, "disk1", false),
				blockdev("qcow2", 5, "disk2", true),
			},
		},
		"a qcow2 disk that is taken as raw": {
			"disk = [{image = 'a.qcow2', format = 'raw'}]", "-blockdev",
			[]string{
				blockdev("raw", 3, "disk0", false),
			},
		},
		"disks of all buses": {
			"disk = [{image = 'a', bus = 'scsi', serial = 'x'}, {image = 'b', bus = 'nvme', boot = 1}, {image = 'c'," +
				" bus = 'cdrom'}, {image = 'd', iothread = true, boot = 2}, {image = 'e', bus = 'scsi'}]", "-device",
			[]string{
				"virtio-scsi-pci,id=scsi0", "scsi-hd,drive=disk0,id=dev-disk0,bus=scsi0.0,serial=x",
				"nvme,drive=disk1,id=dev-disk1,serial=disk1,bootindex=1", "ide-cd,drive=disk2,id=dev-disk2",
				"virtio-blk-pci,drive=disk3,id=dev-disk3,bootindex=2,iothread=io-disk3",
				"scsi-hd,drive=disk4,id=dev-disk4,bus=scsi0.0",
			},
		},
		"how disks are read and written": {
			"disk = [{image = 'a', cache = 'none', aio = 'native', discard = 'ignore'}," +
				" {image = 'b', cache = 'unsafe', aio = 'io_uring', discard = 'ignore'}]", "-blockdev",
			[]string{
				`{"cache":{"direct":true},"driver":"raw","file":{"aio":"native","cache":{"direct":true},"driver":"file",` +
					`"filename":"/dev/fdset/3","read-only":false},"node-name":"disk0","read-only":false}`,
				`{"cache":{"no-flush":true},"driver":"raw","file":{"aio":"io_uring","cache":{"no-flush":true},` +
					`"driver":"file","filename":"/dev/fdset/4","read-only":false},"node-name":"disk1","read-only":false}`,
			},
		},
		"a disk whose changes are dropped": {
			"disk = [{image = 'a', ephemeral = true}]", "-blockdev",
			[]string{
				`{"backing":{"driver":"raw","file":{"driver":"file","filename":"/dev/fdset/3","read-only":true},` +
					`"node-name":"disk0-base","read-only":true},"discard":"unmap","driver":"qcow2","file":{` +
					`"discard":"unmap","driver":"file","filename":"/dev/fdset/4","read-only":false},` +
					`"node-name":"disk0","read-only":false}`,
			},
		},
		"the devices of disks and networks": {
			"disk = [{image = 'a'}]\nnetwork = [{mode = 'user'}, {mode = 'user', mac = '52:54:00:00:00:01'}]",
			"-device",
			[]string{
				"virtio-blk-pci,drive=disk0,id=dev-disk0",
				"virtio-net-pci,netdev=net0,id=dev-net0,romfile=,mac=52:04:fa:31:21:6a",
				"virtio-net-pci,netdev=net1,id=dev-net1,romfile=,mac=52:54:00:00:00:01",
			},
		},
		"networks": {
			"network = [{mode = 'user'}, {mode = 'user', forward = ['tcp:127.0.0.1:2222:22', 'udp::53:5353']}]",
			"-netdev",
			[]string{"user,id=net0", "user,id=net1,hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=udp::53-:5353"},
		},

		"directories of the host": {
			"share = [{mode = '9p', path = 'a,b', tag = 'x'}," +
				" {mode = '9p', path = '/c', tag = 'y', read-only = true}]", "-fsdev",
			[]string{
				"local,id=share0,path=/specs/a,,b,security_model=mapped-xattr,multidevs=remap",
				"local,id=share1,path=/c,security_model=none,multidevs=remap,readonly=on",
			},
		},
		"a directory by a program of its own": {
			"share = [{path = 'a', tag = 'x'}]", "-device",
			[]string{"vhost-user-fs-pci,id=dev-share0,chardev=share0,tag=x"},
		},
		"and the memory for it": {
			"share = [{path = 'a', tag = 'x'}]", "-object",
			[]string{`{"id":"ram","qom-type":"memory-backend-memfd","share":true,"size":536870912}`},
		},
		"devices of the host": {
			"pci = [{address = '65:00.0'}, {address = '0000:65:00.1', rom = true}]", "-device",
			[]string{
				"pcie-root-port,id=port0,chassis=1,slot=1",
				"vfio-pci,host=0000:65:00.0,id=dev-pci0,bus=port0,rombar=0", "pcie-root-port,id=port1,chassis=2,slot=2",
				"vfio-pci,host=0000:65:00.1,id=dev-pci1,bus=port1",
			},
		},
		"a device of the host that takes many addresses": {
			"pci = [{address = '65:00.0', window = '33GiB'}]", "-fw_cfg",
			[]string{"name=opt/ovmf/X-PciMmio64Mb,string=131072"},
		},
		"devices by a word": {
			"rng = true\nvmgenid = true\nwatchdog = 'reset'\npanic = 'pause'", "-device",
			[]string{
				"virtio-rng-pci,id=dev-rng0,rng=rng0", "vmgenid,id=vmgenid0,guid=auto", "i6300esb,id=watchdog0",
				"pvpanic-pci,id=panic0",
			},
		},
		"what they do": {
			"watchdog = 'reset'\npanic = 'pause'", "-action", []string{"watchdog=reset", "panic=pause"},
		},
		"a screen": {"[display]", "-vnc", []string{"unix:/run/vmlatch/vm/screen/vnc.sock"}},
		"an agent": {
			"[agent]", "-device",
			[]string{
				"virtio-serial-pci,id=agent-bus",
				"virtserialport,bus=agent-bus.0,chardev=agent,name=org.qemu.guest_agent.0",
			},
		},
		"configuration of the first boot": {
			"[config]\nuser-data = 'u'\ncredentials = { b = 'c', a = 'd' }", "-smbios",
			[]string{"type=11,path=/proc/self/fd/4", "type=11,path=/proc/self/fd/5"},
		},
		"a seed": {
			"[config]\nuser-data = 'u'", "-device", []string{"virtio-blk-pci,drive=seed,id=dev-seed,serial=cidata"},
		},
		"a network that reaches nothing": {
			"network = [{restrict = true}]", "-netdev", []string{"user,id=net0,restrict=on"},
		},
		"passt": {
			"network = [{mode = 'passt', forward = ['tcp:127.0.0.1:2222:22', 'udp::53:5353']}]", "-netdev",
			[]string{"stream,id=net0,server=off,addr.type=fd,addr.str=3"},
		},
		"interfaces of the host": {
			"network = [{mode = 'bridge', bridge = 'br0'}, {mode = 'tap', interface = 'tap0', vhost = 'on'}," +
				" {mode = 'macvtap', interface = 'mv0'}]", "-netdev",
			[]string{"tap,id=net0,fd=3", "tap,id=net1,fd=4,vhost=on,vhostfd=5", "tap,id=net2,fd=6"},
		},
		"links between VMs": {
			"network = [{mode = 'link', listen = true}, {mode = 'link', connect = 'b'}]", "-netdev",
			[]string{
				"stream,id=net0,server=on,addr.type=fd,addr.str=3",
				"stream,id=net1,server=off,addr.type=unix,addr.path=/run/vmlatch/.links/b/link.sock,reconnect=1",
			},
		},
		"a link of peers": {
			"name = 'a'\nnetwork = [{mode = 'link', peer = 'b'}]", "-netdev",
			[]string{
				"dgram,id=net0,local.type=unix,local.path=/run/vmlatch/.peers/a/b/in," +
					"remote.type=unix,remote.path=/run/vmlatch/.peers/b/a/in",
			},
		},
		"sockets of the host": {
			"[vsock]", "-device", []string{"vhost-vsock-pci,id=vsock0,guest-cid=3594518503,vhostfd=3"},
		},
		"sockets of the host, by a CID": {
			"vsock.cid = 7", "-device", []string{"vhost-vsock-pci,id=vsock0,guest-cid=7,vhostfd=3"},
		},

		"a firmware image": {"firmware.image = 'f'", "-bios", []string{"/specs/f"}},
		"code and variables": {
			"firmware = {image = 'f', vars = 'v'}", "-blockdev",
			[]string{
				flash("/specs/f", "pflash0", true),
				flash("/specs/v", "pflash1", false),
			},
		},
		"code alone, by its name": {
			"firmware.image = 'OVMF_CODE.fd'", "-blockdev",
			[]string{
				flash("/specs/OVMF_CODE.fd", "pflash0", true),
			},
		},
		"a directory that is named like code": {"firmware.image = '/a_CODE/f'", "-bios", []string{"/a_CODE/f"}},
		"firmware by type": {
			"firmware.type = 'uefi'", "-blockdev",
			[]string{
				flash("/fw/CODE.fd", "pflash0", true),
				flash("/run/vmlatch/vm/vars.fd", "pflash1", false),
			},
		},
		"firmware by features": {"firmware.features = ['amd-sev', 'amd-sev-es']", "-bios", []string{"/fw/amdsev.fd"}},
		"firmware of QEMU":     {"firmware.type = 'bios'", "-bios", nil},

		"memory that is shared": {
			"memory-backend.share = true", "-object", []string{
				`{"id":"ram","qom-type":"memory-backend-ram","share":true,"size":536870912}`,
			},
		},
		"memory in a memfd": {
			"memory-backend = {type = 'memfd', share = false, prealloc = true, reserve = true}", "-object",
			[]string{
				`{"id":"ram","prealloc":true,"qom-type":"memory-backend-memfd","reserve":true,"share":false,"size":536870912}`,
			},
		},
		"huge pages": {
			"memory-backend.hugepages = '2MiB'", "-object",
			[]string{
				`{"hugetlb":true,"hugetlbsize":2097152,"id":"ram","qom-type":"memory-backend-memfd","size":536870912}`,
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := mustPlan(t, c.text, testhost.Facts())
			got := plan.ParseOptions(p.Argv).Values[c.option]
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.option, diff)
			}
		})
	}
}

// TestMachine: properties of the machine that come from elsewhere.
func TestMachine(t *testing.T) {
	f := testhost.Facts
	for name, c := range map[string]struct {
		text string
		want map[string]string
	}{
		"plain": {"", map[string]string{
			"driver": "q35", "vmport": "off", "mem-merge": "off", "dump-guest-core": "off", "smm": "",
			"memory-backend": "",
			"pflash0":        "", "pflash1": "", "confidential-guest-support": "", "igvm-cfg": "",
		}},
		"another type": {"machine = 'pc-q35-11.1'", map[string]string{"driver": "pc-q35-11.1"}},
		"memory":       {"memory-backend.share = true", map[string]string{"memory-backend": "ram"}},
		"flash": {
			"firmware = {image = 'f', vars = 'v'}",
			map[string]string{"pflash0": "pflash0", "pflash1": "pflash1"},
		},
		"code alone": {"firmware.image = 'OVMF_CODE.fd'", map[string]string{"pflash0": "pflash0", "pflash1": ""}},
		"SEV": {
			sevSpec,
			map[string]string{"smm": "", "confidential-guest-support": "cgs0", "memory-backend": ""},
		},
		"with registers": {
			snpSpec,
			map[string]string{"smm": "off", "confidential-guest-support": "cgs0", "memory-backend": "ram"},
		},
	} {
		o := plan.ParseOptions(mustPlan(t, c.text, f()).Argv)
		for property, want := range c.want {
			if got := o.Machine(property); got != want {
				t.Errorf("%s: %s=%s, want %s", name, property, got, want)
			}
		}
	}
	o := plan.ParseOptions(mustPlan(t, igvmSpec, f(testhost.WithIGVM)).Argv)
	if got := o.Machine("igvm-cfg"); got != "igvm0" {
		t.Errorf("an IGVM file: igvm-cfg=%s, want igvm0", got)
	}
	if object, ok := o.Protection(); !ok || object.Kind != "sev-snp-guest" {
		t.Errorf("an IGVM file: %+v, %t, want the object that protects the guest", object, ok)
	}
}

// TestWhereValuesCameFrom: a plan says of each value why it is what it is.
func TestWhereValuesCameFrom(t *testing.T) {
	noKVM := testhost.NoKVM("no /dev/kvm")
	for name, c := range map[string]struct {
		text              string
		facts             *plan.Facts
		what, value, from string
	}{
		"QEMU": {"", testhost.Facts(), "qemu", "/usr/bin/qemu-system-x86_64", "default, version 11.1.3"},
		"QEMU, not asked": {
			"", testhost.Facts(func(f *plan.Facts) { f.Info = nil }), "qemu", "/usr/bin/qemu-system-x86_64",
			"default",
		},
		"memory":          {"", testhost.Facts(), "memory", "512MiB", "default"},
		"memory, written": {"memory = '1GiB'", testhost.Facts(), "memory", "1GiB", "spec"},
		"CPUs":            {"cpus = 1", testhost.Facts(), "cpus", "1", "spec"},
		"machine":         {"", testhost.Facts(), "machine", "q35", "default"},
		"KVM":             {"", testhost.Facts(), "accel", "kvm", "KVM is usable"},
		"KVM, written":    {"accel = 'kvm'", testhost.Facts(), "accel", "kvm", "spec"},
		"no KVM":          {"", testhost.Facts(noKVM), "accel", "tcg", "no /dev/kvm"},
		"confidential":    {sevSpec, testhost.Facts(), "accel", "kvm", "confidential guests need it"},
		"emulated": {
			sevSpec, testhost.Facts(noKVM, testhost.Emulated("swtee")), "accel", "kvm",
			"swtee answers for it",
		},
		"CPU":          {"", testhost.Facts(), "cpu", "host", "KVM, and the model is not measured"},
		"CPU of tcg":   {"", testhost.Facts(noKVM), "cpu", "max", "all that the accelerator offers"},
		"CPU, written": {"cpu = 'x'", testhost.Facts(), "cpu", "x", "spec"},
		"CPU of SEV":   {sevSpec, testhost.Facts(), "cpu", "host", "the model is not measured"},
		"CPU of TDX":   {testhost.Specs()["tdx"], testhost.Facts(), "cpu", "host", "tdx takes no other"},
		"a measured CPU": {
			noCPU, testhost.Facts(), "cpu", "EPYC-v4", "the model is measured, so it must not be the host's",
		},
		"an older one": {
			noCPU, testhost.Facts(func(f *plan.Facts) { f.Info.CPUs = host.Names{"EPYC-v2", "EPYC-v3"} }),
			"cpu", "EPYC-v3", "is measured",
		},
		"one that is missing": {
			noCPU, testhost.Facts(func(f *plan.Facts) { f.Info.CPUs = nil }), "cpu", "EPYC-v4",
			"is measured",
		},
		"firmware of QEMU":  {"", testhost.Facts(), "firmware", "QEMU's own SeaBIOS", "default"},
		"firmware, written": {"firmware.image = 'f'", testhost.Facts(), "firmware", "/specs/f", "spec"},
		"firmware, found":   {"firmware.type = 'uefi'", testhost.Facts(), "firmware", "/fw/CODE.fd", "10-flash.json"},
		"an IGVM file":      {igvmSpec, testhost.Facts(testhost.WithIGVM), "firmware", "/specs/fw", "spec"},
		"memory of a kind":  {"memory-backend.type = 'ram'", testhost.Facts(), "memory-backend", "ram", "spec"},
		"memory by default": {"memory-backend.share = true", testhost.Facts(), "memory-backend", "ram", "default"},
		"huge pages": {
			"memory-backend.hugepages = '2MiB'", testhost.Facts(), "memory-backend", "memfd",
			"the guest shares pages of it",
		},
		"private memory": {snpSpec, testhost.Facts(), "memory-backend", "memfd", "the guest shares pages of it"},
		"private, of a kind": {
			snpSpec + "[memory-backend]\ntype = 'memfd'", testhost.Facts(), "memory-backend", "memfd",
			"spec",
		},
	} {
		p := mustPlan(t, c.text, c.facts)
		i := slices.IndexFunc(p.Choices, func(choice rundir.Choice) bool { return choice.What == c.what })
		if i < 0 || p.Choices[i].Value != c.value || !strings.Contains(p.Choices[i].From, c.from) {
			t.Errorf("%s: %+v, want %s = %s from %q", name, p.Choices, c.what, c.value, c.from)
		}
	}
}

// noCPU is an SEV-SNP guest of no CPU model.
var noCPU = strings.Replace(snpSpec, `cpu = "EPYC-Genoa"`, "", 1)
