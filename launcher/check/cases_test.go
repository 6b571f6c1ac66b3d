package check_test

import (
	"context"
	"encoding/binary"
	"hash/crc32"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/ovmf/ovmftest"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// checkCase makes one check fail: by a change of the spec's text, of the host, of
// the plan's command line, or of files.
type checkCase struct {
	tech    string            // which spec to change
	replace [2]string         // in the spec's text
	add     string            // to the spec's text
	host    func(*plan.Facts) //
	argv    [2]string         // in the plan's command line
	files   map[string]string // in the spec's directory
	plan    func(*plan.Plan)
	guest   func(*tee.Guest)
	refused bool // already when the spec is read
}

// taken has a VM's name: its locks would go with it.
var taken *rundir.Dir

// checkCases has a way to fail for every check, by its id.
var checkCases = map[string]checkCase{
	"machine-q35": {
		tech:    "sev",
		add:     "",
		replace: [2]string{`name = "vm"`, "name = \"vm\"\nmachine = \"pc\""},
		refused: true,
	},
	"no-variable-store": {
		tech:    "sev",
		replace: [2]string{`image = "fw"`, "image = \"fw\"\nvars = \"v\""},
		refused: true,
	},
	"kernel-hashes-kernel": {
		tech:    "sev-es",
		replace: [2]string{`technology`, "kernel-hashes = true\ntechnology"},
		refused: true,
	},
	"kernel-measured": {tech: "sev", replace: [2]string{`technology`, "kernel-hashes = false\ntechnology"}},
	"sev-policy-debug": {
		tech:    "sev",
		replace: [2]string{`technology`, "policy = [\"no-key-sharing\"]\ntechnology"},
		refused: true,
	},
	"sev-policy-send":        {tech: "sev", replace: [2]string{`technology`, "policy = [\"no-debug\"]\ntechnology"}},
	"sev-policy-key-sharing": {tech: "sev", replace: [2]string{`technology`, "policy = [\"no-debug\"]\ntechnology"}},
	"session-pair":           {tech: "sev", replace: [2]string{`owner-cert = "cert"`, ""}, refused: true},
	"id-block-pair": {
		tech:    "sev-snp",
		replace: [2]string{`technology`, "id-block = \"b\"\ntechnology"},
		refused: true,
	},
	"snp-policy-debug": {
		tech:    "sev-snp",
		replace: [2]string{`technology`, "policy = [\"smt\", \"debug\"]\ntechnology"},
		refused: true,
	},
	"snp-policy-migration": {
		tech:    "sev-snp",
		replace: [2]string{`technology`, "policy = [\"smt\", \"migrate\"]\ntechnology"},
		refused: true,
	},
	"cpu-model-named":     {tech: "sev-snp", replace: [2]string{`"EPYC-Milan-v1"`, `"host,+avx"`}, refused: true},
	"cpu-model-versioned": {tech: "sev-es", replace: [2]string{`"EPYC-Milan-v1"`, `"EPYC-Milan"`}},
	"tdx-attributes": {
		tech:    "tdx",
		replace: [2]string{`technology`, "policy = [\"pks\"]\ntechnology"},
		refused: true,
	},
	"tdx-cpu-host": {
		tech:    "tdx",
		replace: [2]string{`name = "vm"`, "name = \"vm\"\ncpu = \"EPYC-v4\""},
		refused: true,
	},
	"tdx-hugepages":          {tech: "tdx", add: "[memory-backend]\nhugepages = \"2MiB\"\n"},
	"private-memory-backend": {tech: "sev-snp", add: "[memory-backend]\nshare = false\n", refused: true},
	"private-memory-twice":   {tech: "sev-snp", add: "[memory-backend]\nprealloc = true\n"},
	"virtio-dma": {
		tech:    "sev",
		add:     "[[device]]\ndriver = \"virtio-rng-pci\"\niommu_platform = false\n",
		refused: true,
	},
	"extra-objects": {
		tech:    "none",
		add:     "[[object]]\nqom-type = \"monitor-qmp\"\nid = \"m\"\n",
		refused: true,
	},
	"no-hotplug":         {tech: "sev-snp", add: "[[device]]\ndriver = \"nvdimm\"\n", refused: true},
	"no-loader":          {tech: "sev-snp", add: "[[device]]\ndriver = \"loader\"\nfile = \"x\"\n", refused: true},
	"no-balloon":         {tech: "sev", add: "[[device]]\ndriver = \"virtio-balloon-pci\"\n"},
	"no-viommu":          {tech: "sev", add: "[[device]]\ndriver = \"intel-iommu\"\n"},
	"vfio-iommufd":       {tech: "sev-snp", add: "[[device]]\ndriver = \"vfio-pci\"\nhost = \"01:00.0\"\n"},
	"vtpm-evidence":      {tech: "sev-snp", add: "[tpm]\n", refused: true},
	"tpm-tdx-rtmr2":      {tech: "tdx", add: "[tpm]\ntrust = \"host\"\n", refused: true},
	"tpm-device-twice":   {tech: "none", add: "[tpm]\n[[device]]\ndriver = \"tpm-tis\"\n", refused: true},
	"tpm-ephemeral-disk": {tech: "none", add: "[tpm]\nstate = \"ephemeral\"\n[[disk]]\nimage = \"k\"\n"},
	"secure-boot-direct": {
		tech: "none",
		add:  "[firmware]\nsecure-boot = true\nimage = \"k\"\nvars = \"k\"\n[kernel]\nimage = \"k\"\n",
	},
	"tpm-swtpm": {tech: "none", add: "[tpm]\n", host: func(f *plan.Facts) { f.TPM = nil }},
	"tpm-state-key": {tech: "none", add: "[tpm]\n", host: func(f *plan.Facts) {
		encrypted := true
		f.TPM.Encrypted = &encrypted
	}},
	"tpm-firmware":  {tech: "none", add: "[tpm]\n", host: func(f *plan.Facts) { f.TPM.Firmware = "no modules" }},
	"tdx-boot-disk": {tech: "tdx", add: "[[device]]\ndriver = \"virtio-scsi-pci\"\n", refused: true},
	"option-roms":   {tech: "sev", add: "[[device]]\ndriver = \"e1000e\"\n"},

	"technology-usable": {tech: "sev-snp", host: func(f *plan.Facts) {
		f.Host.Technologies[2] = host.Technology{Name: "sev-snp", Usable: host.No, Why: "off"}
	}},
	"qemu-object":     {tech: "sev-snp", host: func(f *plan.Facts) { f.Info = testhost.QEMU("7.2") }},
	"cpu-model-known": {tech: "sev-es", replace: [2]string{`"EPYC-Milan-v1"`, `"EPYC-Naples-v9"`}},
	"vcpu-limit": {
		tech:    "sev-es",
		replace: [2]string{`name = "vm"`, "name = \"vm\"\ncpus = 300"},
		host:    func(f *plan.Facts) { f.Info.MaxCPUs["q35"] = 288 },
	},
	"free-slots":       {tech: "sev", host: func(f *plan.Facts) { f.Host.Slots[0].InUse = 410 }},
	"memory-lock":      {tech: "sev", host: func(f *plan.Facts) { f.MaxLock = 8 << 20 }},
	"memory-available": {tech: "none", host: func(f *plan.Facts) { f.Host.MemFree = 32 << 20 }},
	"memory-nodes": {
		tech: "none", add: "[memory-backend]\nnodes = \"0-1\"\n",
		host: func(f *plan.Facts) { f.Nodes = []int{0} },
	},
	"bounce-buffers": {
		tech: "sev-snp", add: "[[disk]]\nimage = \"d\"\n",
		replace: [2]string{`image = "k"`, `image = "k"` + "\n" + `cmdline = "panic=-1 swiotlb=8191"`},
	},
	"hugepages-free": {
		tech: "none",
		add:  "[memory-backend]\nhugepages = \"2MiB\"\n",
		host: func(f *plan.Facts) { f.HugePages = map[uint64]uint64{2 << 20: 31} },
	},
	"es-on-snp-host": {tech: "sev-es", host: func(f *plan.Facts) { f.Host.SEV.SNPEnabled = host.Yes }},
	"vmsa-features":  {tech: "sev-es", host: func(f *plan.Facts) { f.Host.SEV.DebugSwap = host.Yes }},
	"snp-policy-smt": {tech: "sev-snp", replace: [2]string{`technology`, "policy = [\"single-socket\"]\ntechnology"}},
	"snp-policy-support": {
		tech: "sev-snp", replace: [2]string{`technology`, "policy = [\"smt\", \"ciphertext-hiding\"]\ntechnology"},
		host: func(f *plan.Facts) { f.Host.SEV.CiphertextHiding = 0 },
	},
	"snp-iommu":         {tech: "sev-snp", host: func(f *plan.Facts) { f.Host.IOMMU.Passthrough = host.Yes }},
	"snp-firmware":      {tech: "sev-snp", host: func(f *plan.Facts) { f.Host.SEV.SNPAPI = "1.49" }},
	"snp-kernel":        {tech: "sev-snp", host: func(f *plan.Facts) { f.Host.Kernel = "6.10.14" }},
	"ciphertext-hiding": {tech: "sev-snp", host: func(f *plan.Facts) { f.Host.SEV.CiphertextHiding = 0 }},
	"tdx-kernel":        {tech: "tdx", host: func(f *plan.Facts) { f.Host.Kernel = "6.12.1" }},
	"tdx-module":        {tech: "tdx", host: func(f *plan.Facts) { f.Host.TDX.Initialized = host.No }},
	"tdx-quote-service": {tech: "tdx", replace: [2]string{`"qgs"`, `"missing"`}},
	"machine-pinned":    {tech: "tdx", replace: [2]string{`machine = "pc-q35-11.1"`, ``}},
	"owner-command":     {tech: "sev", add: "[latch]\nowner = [\"./no-such-program\"]\n"},
	"name-free": {
		tech: "none",
		plan: func(p *plan.Plan) { taken, _ = p.Dirs.Create(context.Background(), p.Name) },
	},

	"directories":        {tech: "none", plan: func(p *plan.Plan) { p.Dirs.State = "/dev/null/state" }},
	"files-readable":     {tech: "sev", files: map[string]string{"k": "-"}},
	"firmware-stateless": {tech: "sev-snp", argv: [2]string{"q35,", "q35,pflash0=code,"}},
	"firmware-knows":     {tech: "sev-snp", files: map[string]string{"fw": "no table"}},
	"kernel-hashes-area": {tech: "sev", files: map[string]string{"fw": "no table"}},
	"secret-area":        {tech: "sev", files: map[string]string{"fw": "no table"}},
	"secure-boot-kernel": {tech: "sev", files: map[string]string{"fw": string(ovmftest.WithPlatformKey())}},
	"igvm-alone":         {tech: "sev-snp", argv: [2]string{"q35,", "q35,igvm-cfg=igvm0,"}},
	"session-files":      {tech: "sev", files: map[string]string{"session": "AAAA"}},
	"cbitpos":            {tech: "sev", argv: [2]string{`"cbitpos":51`, `"cbitpos":47`}},
	"reduced-phys-bits":  {tech: "sev", argv: [2]string{`"reduced-phys-bits":1`, `"reduced-phys-bits":6`}},
	"sev-policy-es":      {tech: "sev-es", argv: [2]string{`"policy":15`, `"policy":11`}},
	"vm-type-explicit":   {tech: "sev-es", argv: [2]string{`"legacy-vm-type":"off",`, ``}},
	"id-block-size": {tech: "sev-snp", host: func(f *plan.Facts) {
		f.OwnerFiles = map[string][]byte{"id-block": make([]byte, 96), "id-auth": make([]byte, 4095)}
	}, guest: func(g *tee.Guest) { g.Confidential.IDBlock = "b" }},
	"smm-off":           {tech: "sev-snp", argv: [2]string{"smm=off", "smm=on"}},
	"irqchip":           {tech: "sev-es", argv: [2]string{"smm=off", "smm=off,kernel-irqchip=split"}},
	"tdx-machine":       {tech: "tdx", argv: [2]string{"hpet=off", "hpet=on"}},
	"private-memory":    {tech: "tdx", argv: [2]string{`"share":true`, `"share":false`}},
	"memory-not-locked": {tech: "sev-snp", plan: func(p *plan.Plan) { p.MemoryLock = 1 << 30 }},
	"machine-defaults":  {tech: "sev", argv: [2]string{"mem-merge=off", "mem-merge=on"}},
	"no-reboot":         {tech: "sev", argv: [2]string{"-no-reboot", "-nodefaults"}},
	"paused-start":      {tech: "sev", argv: [2]string{"-S", "-nodefaults"}},
	"fixed-size": {
		tech: "sev-snp",
		plan: func(p *plan.Plan) { p.Argv[slices.Index(p.Argv, "-smp")+1] = "1,maxcpus=4" },
	},
	"one-monitor":   {tech: "sev", plan: func(p *plan.Plan) { p.Argv = append(p.Argv, "-monitor", "stdio") }},
	"disks-private": {tech: "sev", add: "[[disk]]\nimage = \"disk\"\n", files: map[string]string{"disk": "x"}},
	"disk-image": {
		tech: "none", add: "[[disk]]\nimage = \"disk\"\n", files: map[string]string{"disk": "KDMV and more"},
	},
	"disks-free": {
		tech: "none", add: "[[disk]]\nimage = \"disk\"\n", files: map[string]string{"disk": "x"},
		plan: func(p *plan.Plan) { lockImage(p.Guest.Disks[0].Image) },
	},
	"ports-free": {
		tech: "none", add: "[[network]]\nmode = \"user\"\nforward = [\"tcp:" + takenPort() + ":22\"]\n",
	},
	"qemu-confined": {
		tech: "none",
		host: func(f *plan.Facts) { f.Confine = &plan.Confinement{Stage: []string{"s"}, Cannot: "it is a script"} },
	},
	"network-loopback": {tech: "none", add: "[[network]]\n"},
	"network-names": {
		tech: "none", add: "[[network]]\nmode = \"passt\"\n",
		host: func(f *plan.Facts) { f.NoNames = "/etc/resolv.conf is empty" },
	},
	"something-boots": {tech: "none", guest: func(g *tee.Guest) { g.Kernel.Image, g.Firmware.Image = "", "" }},
	"machine-known": {
		tech: "none", host: func(f *plan.Facts) {
			f.Info = &host.QEMU{Types: []string{
				"pc-q35-11.1",
				"pc-i440fx-11.1",
			}}
		},
	},
	"device-known": {
		tech: "none", add: "[[device]]\ndriver = \"virtio-rgn-pci\"\n",
		host: func(f *plan.Facts) { f.Info = &host.QEMU{} },
	},
	"kernel-measurable": {tech: "sev", files: map[string]string{"k": "\x7fELF, a vmlinux"}},
	"cmdline-whole": {
		tech: "sev", replace: [2]string{`image = "k"`, `image = "k"` + "\n" + `cmdline = "` + strings.Repeat("x",
			2048) + `"`},
	},
	"initrd-fits": {
		tech: "none", add: "[kernel]\nimage = \"k\"\ninitrd = \"i\"\n",
		files: map[string]string{"i": strings.Repeat("x", 1<<20)},
		guest: func(g *tee.Guest) { g.Memory = 1 << 20 },
	},
	"cmdline-length": {
		tech: "none", add: "[kernel]\nimage = \"k\"\ncmdline = \"" + strings.Repeat("x", 2048) + "\"\n",
	},
	"cmdline-characters": {
		tech: "none", add: "[kernel]\nimage = \"k\"\ncmdline = \"quiet\u00a0splash\"\n",
	},
	"broker-key-measured": {tech: "tdx", add: "[broker]\nconnect = \"unix:broker\"\n"},
	"console-closed":      {tech: "sev-snp", replace: [2]string{`image = "k"`, kernelAsks("panic=0")}},
	"broker-source": {
		tech: "sev-snp", replace: [2]string{`image = "k"`, kernelAsks("panic=-1 latch.source=injected")},
		refused: true,
	},
	"broker-trust": {
		tech: "sev-snp", replace: [2]string{`image = "k"`, kernelAsks("panic=-1 latch.trust=host")},
		refused: true,
	},
	"share-there": {tech: "none", add: "[[share]]\npath = \"d\"\ntag = \"t\"\n", files: map[string]string{"d": ""}},
	"share-rights": {
		tech: "none", add: "[[share]]\npath = \".\"\ntag = \"t\"\n",
		host: func(f *plan.Facts) {
			f.VirtioFSD, f.VirtioFSDLacks = "/usr/libexec/virtiofsd", []string{"CAP_SYS_ADMIN"}
		},
	},
	"share-private": {tech: "sev-snp", add: "[[share]]\npath = \".\"\ntag = \"t\"\n", refused: true},
	"share-visible": {tech: "sev-snp", add: "[[share]]\npath = \".\"\ntag = \"t\"\nmode = \"9p\"\n"},
	"pci-there": {
		tech: "none",
		add:  aPCI,
		host: pciIs(func(d *host.PCIDevice) { *d = host.PCIDevice{Group: -1} }),
	},
	"pci-iommu":  {tech: "none", add: aPCI, host: pciIs(func(d *host.PCIDevice) { d.Group = -1 })},
	"pci-driver": {tech: "none", add: aPCI, host: pciIs(func(d *host.PCIDevice) { d.Driver = "nouveau" })},
	"pci-group": {tech: "none", add: aPCI, host: pciIs(func(d *host.PCIDevice) {
		d.Mates = []host.PCIDevice{{Class: 0x060400, Driver: "pcieport"}, {Class: 0x040300, Driver: "snd_hda_intel"}}
	})},
	"pci-rights": {tech: "none", add: aPCI, host: func(f *plan.Facts) {
		pciIs(func(*host.PCIDevice) {})(f)
		f.OpensVFIO = nil
	}},
	"pci-modern":     {tech: "sev-snp", add: aPCI, host: pciIs(func(d *host.PCIDevice) { d.Node = "" })},
	"pci-unattested": {tech: "sev-snp", add: aPCI},
	"limits-memory":  {tech: "sev-snp", add: "[limits]\nmemory = \"200MiB\"\n", refused: true},
	"limits-possible": {
		tech: "none", add: "[limits]\ncpu = 0.5\n",
		host: func(f *plan.Facts) { f.Groups, f.NoGroups = nil, "no control groups of version 2 are mounted" },
	},
	"limits-session": {
		tech: "none", add: "[limits]\ncpu = 0.5\n", host: func(f *plan.Facts) { f.GroupsEnd = true },
	},
	"pin-processors": {
		tech: "none", add: "[pin]\ncpus = [\"0,900\"]\n",
		host: func(f *plan.Facts) { f.Processors = []int{0, 1} },
	},
	"no-screen":         {tech: "sev-snp", add: "[display]\n", refused: true},
	"no-agent":          {tech: "sev-snp", add: "[agent]\n", refused: true},
	"config-unmeasured": {tech: "sev-snp", add: "[config]\nuser-data = \"u\"\n", refused: true},
	"config-found": {
		tech: "sev-snp", add: "[config]\nuser-data = \"u\"\n",
		replace: [2]string{`image = "k"`, "image = \"k\"\ninitrd = \"i\"\ncmdline = \"panic=-1 ds=nocloud\""},
	},
	"config-size": {
		tech: "none", add: "[config]\ncredentials = { a = \"a\", b = \"a\" }\n",
		files: map[string]string{"a": strings.Repeat("x", 30_000)},
	},
	"config-disk": {
		tech: "sev-snp", add: "[[disk]]\nimage = \"d\"\n",
		files:   map[string]string{"d": strings.Repeat("\x00", 0x47) + "CIDATA     FAT32   "},
		refused: true,
	},
	"disk-discard":    {tech: "sev-snp", add: "[[disk]]\nimage = \"d\"\ndiscard = \"unmap\"\n"},
	"disk-unsafe":     {tech: "none", add: "[[disk]]\nimage = \"d\"\ncache = \"unsafe\"\n"},
	"firmware-memory": {tech: "sev-snp", guest: func(g *tee.Guest) { g.Memory = 4 << 20 }},
	"vars-image": {
		tech: "none", add: "firmware = { image = \"fw\", vars = \"v\" }\n",
		files: map[string]string{"v": "QFI\xfb and more"},
	},
	"firmware-image": {tech: "sev", files: map[string]string{"fw": "QFI\xfb and more"}},
	"igvm-vcpus": {
		tech: "sev-snp", files: map[string]string{"fw": igvmOfOneCPU()}, guest: func(g *tee.Guest) { g.CPUs = 4 },
	},
}

const (
	aPCI      = "[[pci]]\naddress = \"65:00.0\"\n"
	pciOfTest = "0000:65:00.0"
)

// pciIs gives the host a device that could be given to a guest, but for a change.
func pciIs(change func(*host.PCIDevice)) func(*plan.Facts) {
	return func(f *plan.Facts) {
		d := &host.PCIDevice{
			Address: pciOfTest,
			There:   true,
			Class:   0x030000,
			Driver:  "vfio-pci",
			Group:   7,
			Node:    "vfio3",
		}
		change(d)
		f.PCI, f.OpensVFIO = map[string]*host.PCIDevice{pciOfTest: d}, map[string]bool{pciOfTest: true}
		if f.Info != nil {
			f.Info.Objects["iommufd"] = nil
		}
	}
}

// kernelAsks is a kernel whose command line names a broker.
func kernelAsks(words string) string {
	return "image = \"k\"\ncmdline = \"latch.key=ed25519:11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" +
		" latch.name=a latch.broker=port " + words + "\""
}

// igvmOfOneCPU is an IGVM file for SEV-SNP with one register page (igvm_defs).
func igvmOfOneCPU() string {
	le := binary.LittleEndian
	header := func(b []byte, kind uint32, data []byte) []byte {
		b = le.AppendUint32(le.AppendUint32(b, kind), uint32(len(data)))
		return append(append(b, data...), make([]byte, -len(data)&7)...)
	}
	platform, context := make([]byte, 16), make([]byte, 20)
	platform[0], platform[5] = 1, 2
	le.PutUint64(context, 0xfffffffff000)
	context[8] = 1
	headers := header(header(nil, 0x1, platform), 0x304, context)
	b := append([]byte("IGVM"), make([]byte, 20)...)
	for at, v := range map[int]uint32{4: 1, 8: 24, 12: uint32(len(headers)), 16: uint32(24 + len(headers))} {
		le.PutUint32(b[at:], v)
	}
	b = append(b, headers...)
	le.PutUint32(b[20:], crc32.ChecksumIEEE(b))
	return string(b)
}

// lockImage locks an image as a QEMU does that writes to it; the lock ends with the test's
// process.
func lockImage(path string) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: 101, Len: 1})
	}
	if err != nil {
		panic(err)
	}
}
