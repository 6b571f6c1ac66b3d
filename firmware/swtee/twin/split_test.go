package twin

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// here makes files and returns their directory.
func here(t testing.TB, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, n := range names {
		if err := os.WriteFile(filepath.Join(dir, n), []byte("the bytes of "+n), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// splits splits a command line in which DIR is a directory with files; FILE(n) in what comes out is
// the copy of one.
func splits(t testing.TB, dir, line string, measure map[string]string) (*lines, string, string, error) {
	t.Helper()
	fs := &files{}
	t.Cleanup(fs.close)
	argv := strings.Fields(strings.ReplaceAll(line, "DIR", dir))
	for i := range argv {
		argv[i] = strings.ReplaceAll(argv[i], "~", " ")
	}
	l, err := split(append([]string{"qemu"}, argv...), measure, fs)
	if err != nil {
		return nil, "", "", err
	}
	named := func(args []string) string {
		s := strings.Join(args, " ")
		for path, f := range fs.copies {
			s = strings.ReplaceAll(s, f.name(), "COPY("+filepath.Base(path)+")")
		}
		return s
	}
	return l, named(l.oracle), named(l.twin.List()), nil
}

const (
	snp       = "-object sev-snp-guest,id=s,cbitpos=51 -machine q35,confidential-guest-support=s "
	oracleEnd = " -S"
	twinEnd   = " -global virtio-device.iommu_platform=on -global virtio-blk-pci.disable-legacy=on " +
		"-global virtio-net-pci.disable-legacy=on -action reboot=shutdown -S"
	oracleTop = "-nodefaults -no-user-config -display none -accel kvm "
	twinTop   = "-accel tcg "
)

// TestSplit: what is measured goes to both, from one copy, and devices to the twin alone.
func TestSplit(t *testing.T) {
	dir := here(t, "fw", "kernel", "initrd")
	for _, c := range []struct{ line, oracle, twin string }{
		{
			"-object sev-snp-guest,id=s -machine q35,accel=kvm,confidential-guest-support=s,kernel_irqchip=split" +
				" -cpu EPYC-v4,+x -smp 2 -m 1G -bios DIR/fw -kernel DIR/kernel -initrd DIR/initrd -append a~b",
			"-object sev-snp-guest,id=s -machine q35,confidential-guest-support=s,kernel_irqchip=split" +
				" -cpu EPYC-v4,+x -smp 2 -m 1G -bios COPY(fw) -kernel COPY(kernel) -initrd COPY(initrd) -append a b",
			"-machine q35,mem-merge=off" +
				" -cpu max,+x -smp 2 -m 1G -bios COPY(fw) -kernel COPY(kernel) -initrd COPY(initrd) -append a b",
		},
		{ // two processes would map one guest memory
			"-object memory-backend-memfd,id=m,size=64M,share=on,prealloc=on " + snp + "-S -drive file=d,if=virtio",
			"-object memory-backend-ram,id=m,size=64M " +
				"-object sev-snp-guest,id=s,cbitpos=51 -machine q35,confidential-guest-support=s",
			"-object memory-backend-memfd,id=m,size=64M,share=on,prealloc=on -machine q35,mem-merge=off " +
				"-drive file=d,if=virtio",
		},
		{ // firmware by pflash
			snp + "-drive if=pflash,format=raw,unit=0,file=DIR/fw -drive if=pflash,format=raw,unit=1,file=vars",
			"-object sev-snp-guest,id=s,cbitpos=51 -machine q35,confidential-guest-support=s " +
				"-drive if=pflash,format=raw,unit=0,file=COPY(fw),readonly=on",
			"-machine q35,mem-merge=off -drive if=pflash,format=raw,unit=0,file=COPY(fw),readonly=on " +
				"-drive if=pflash,format=raw,unit=1,file=vars",
		},
		{ // firmware by nodes, as libvirt has it
			`-blockdev {"driver":"file","filename":"DIR/fw","node-name":"f0"} ` +
				`-blockdev {"driver":"raw","file":"f0","node-name":"f1","read-only":true} ` +
				"-blockdev file,node-name=d,filename=disk " +
				"-object sev-guest,id=s -machine q35,pflash0=f1,pflash1=v,confidential-guest-support=s",
			`-blockdev {"driver":"file","filename":"COPY(fw)","node-name":"f0","read-only":true} ` +
				`-blockdev {"driver":"raw","file":"f0","node-name":"f1","read-only":true} ` +
				"-object sev-guest,id=s -machine q35,pflash0=f1,confidential-guest-support=s",
			`-blockdev {"driver":"file","filename":"COPY(fw)","node-name":"f0","read-only":true} ` +
				`-blockdev {"driver":"raw","file":"f0","node-name":"f1","read-only":true} ` +
				"-blockdev file,node-name=d,filename=disk -machine q35,pflash0=f1,pflash1=v,mem-merge=off",
		},
		{ // virtio devices as confidential guests have them
			snp + `-device virtio-net-pci,netdev=n -device {"driver":"virtio-blk-pci","drive":"d"} ` +
				"-device virtio-net-pci-non-transitional -device e1000,bootindex=1",
			"-object sev-snp-guest,id=s,cbitpos=51 -machine q35,confidential-guest-support=s",
			"-machine q35,mem-merge=off -device virtio-net-pci,netdev=n,disable-legacy=on " +
				`-device {"disable-legacy":"on","drive":"d","driver":"virtio-blk-pci"} ` +
				"-device virtio-net-pci-non-transitional -device e1000,bootindex=1",
		},
	} {
		_, oracle, twin, err := splits(t, dir, c.line, nil)
		if err != nil {
			t.Errorf("%s: %v", c.line, err)
			continue
		}
		if want := oracleTop + c.oracle + oracleEnd; oracle != want {
			t.Errorf("oracle\n%s\nwant\n%s", oracle, want)
		}
		if want := twinTop + c.twin + twinEnd; twin != want {
			t.Errorf("twin\n%s\nwant\n%s", twin, want)
		}
	}
}

// TestSplitTDX: nothing but the kernel that RTMR1 names boots.
func TestSplitTDX(t *testing.T) {
	line := "-object tdx-guest,id=s -machine q35,confidential-guest-support=s -kernel DIR/kernel " +
		`-device virtio-blk-pci,drive=d,bootindex=0 -device {"driver":"e1000","bootindex":1}`
	l, _, twin, err := splits(t, here(t, "kernel"), line, nil)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(twin, "bootindex") || !l.bound || len(l.notes) != 2 {
		t.Errorf("the twin gets %s, notes %q", twin, l.notes)
	}
}

// TestMeasure: a host that lies gives another value to the launch alone.
func TestMeasure(t *testing.T) {
	dir := here(t, "fw", "kernel", "other")
	line := snp + "-bios DIR/fw -kernel DIR/kernel -append good -smp 1"
	lie := map[string]string{"append": "bad", "kernel": filepath.Join(dir, "other"), "smp": "2"}
	l, oracle, twin, err := splits(t, dir, line, lie)
	if err != nil {
		t.Fatal(err)
	}
	for what, args := range map[string]string{
		"-kernel COPY(other) -append bad -smp 2": oracle, "-kernel COPY(kernel) -append good -smp 1": twin,
	} {
		if !strings.Contains(args, what) {
			t.Errorf("%s lacks %s", args, what)
		}
	}
	if filepath.Base(l.kernel.path) != "kernel" || l.append != "good" {
		t.Errorf("the twin's kernel is taken for %s", l.kernel.path)
	}
	if _, _, _, err := splits(t, dir, line, map[string]string{"initrd": "x"}); err == nil {
		t.Error("an option that is not there is replaced")
	}
}

func TestSplitRefuses(t *testing.T) {
	dir := here(t, "fw", "empty")
	if err := os.WriteFile(filepath.Join(dir, "empty"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{
		"-m 64": "no confidential guest",
		"-object sev-guest,id=s -machine q35,confidential-guest-support=t":  "no confidential guest",
		"-object rng-random,id=s -machine q35,confidential-guest-support=s": "no confidential guest",
		snp + "-monitor stdio":                                "HMP",
		snp + "-mon chardev=c":                                "HMP",
		snp + "-mon chardev=c,mode=readline":                  "HMP",
		snp + "-serial mon:stdio":                             "HMP",
		snp + "-gdb tcp::1":                                   "debugger",
		snp + "-s":                                            "debugger",
		snp + "-incoming defer":                               "migrated",
		snp + "-loadvm x":                                     "snapshots",
		snp + "-daemonize":                                    "outlive",
		snp + "-readconfig x":                                 "command line only",
		snp + "-run-with user=x":                              "without swtee",
		snp + "-action reboot=reset":                          "reset ends its launch",
		snp + "-device virtio-net-pci,iommu_platform=off":     "iommu_platform",
		snp + `-device {"driver":"x","iommu_platform":false}`: "iommu_platform",
		snp + "-confidential-magic on":                        "does not know whether",
		snp + "-bios DIR/none":                                "no such file",
		snp + "-bios DIR":                                     "not a regular file",
		snp + "-bios DIR/empty":                               "empty",
		"-object igvm-cfg,id=i,file=x -object sev-snp-guest,id=s -machine q35,confidential-guest-support=s": "IGVM",
		"-object tdx-guest,id=s -machine q35,confidential-guest-support=s -boot menu=on":                    "RTMR1",
		"-blockdev {bad " + snp:                         "-blockdev",
		"-qtest x " + snp:                               "swtee drives QEMU",
		snp + "-shim x":                                 "no measurement covers it",
		snp + "-fw_cfg name=etc/boot/shim,file=x":       "no measurement covers it",
		snp + "-device loader,file=x,addr=0":            "not measured",
		snp + `-device {"driver":"loader"}`:             "not measured",
		snp + "-device EPYC-v4-x86_64-cpu,core-id=1":    "not measured",
		snp + "-device pc-dimm,memdev=m":                "not measured",
		snp + "-machine kernel=x":                       "write -kernel",
		snp + "-machine append=x":                       "write -append",
		snp + "-set device.d.bootindex=1":               "where the device",
		snp + "-mon x,mode=control,chardev=y,chardev=z": "HMP",
		snp + "-mon mode=control,x":                     "HMP",
		snp + "-debugcon mon:stdio":                     "HMP",
		snp + "-d in_asm":                               "silicon hides",
		"-object tdx-guest,id=s -machine q35,confidential-guest-support=s -boot d": "RTMR1",
	} {
		if _, _, _, err := splits(t, dir, line, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", line, err, want)
		}
	}
}

// TestCopies cannot be changed, by this process or another, and are what the file was.
func TestCopies(t *testing.T) {
	dir := here(t, "kernel")
	file := filepath.Join(dir, "kernel")
	fs := &files{}
	f, err := fs.open(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("something else"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err := fs.open(file); err != nil || again != f {
		t.Errorf("a second copy is made: %v", err)
	}
	got, err := os.ReadFile(f.name())
	if err != nil || string(got) != "the bytes of kernel" || !bytes.Equal(got, f.bytes) {
		t.Errorf("%q, %v, want what the file was", got, err)
	}
	w, err := os.OpenFile(f.name(), os.O_RDWR, 0)
	if err == nil {
		_, err = w.Write([]byte("x"))
		_ = w.Close()
	}
	if !errors.Is(err, unix.EPERM) {
		t.Errorf("a write to the copy: %v, want EPERM", err)
	}
	fs.close()
	if _, err := os.Stat(f.name()); err == nil {
		t.Error("the copy is still open")
	}
}

func TestDescriptors(t *testing.T) {
	got := descriptors([]string{
		"qemu", "-netdev", "tap,id=n,fd=5,vhostfd=6", "-netdev", "tap,fds=7:8", "-add-fd", "fd=9,set=2",
		"-blockdev", `{"driver":"file","filename":"/dev/fdset/2"}`, "-chardev", `socket,id=c,fd=10`,
		"-drive", "file=/proc/self/fd/11", "-device", `{"vhostfd":"12"}`, "-m", "64", "-serial", "fd=2",
		"-object", "memory-backend-file,mem-path=/dev/fd/13",
	})
	slices.Sort(got)
	if want := []int{5, 6, 7, 8, 9, 10, 11, 12, 13}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestKeepFrom: the oracle does not inherit what is the twin's.
func TestKeepFrom(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd := int(f.Fd())
	closes := func() bool {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err != nil {
			t.Fatal(err)
		}
		return n&unix.FD_CLOEXEC != 0
	}
	again := keepFrom([]int{fd, 9999})
	if !closes() {
		t.Error("it is inherited")
	}
	if err := again(); err != nil || closes() {
		t.Errorf("it is not inherited afterwards, %v", err)
	}
}

// TestOnlyHeader: a served kernel may differ in what QEMU fills in.
func TestOnlyHeader(t *testing.T) {
	kernel := bytes.Repeat([]byte{7}, 4096)
	setup := bytes.Clone(kernel[:1024])
	for _, f := range filledIn {
		for i := range f.size {
			setup[f.off+i] ^= 0xff
		}
	}
	if err := onlyHeader(kernel, setup); err != nil {
		t.Error(err)
	}
	for _, off := range []int{0, 0x1f9, 0x1fc, 0x212, 0x22c, 0x258, 1023} {
		bad := bytes.Clone(setup)
		bad[off] ^= 1
		if err := onlyHeader(kernel, bad); !errors.Is(err, errPages) {
			t.Errorf("byte %#x: %v", off, err)
		}
	}
	if err := onlyHeader(kernel[:100], setup); !errors.Is(err, errPages) {
		t.Errorf("a setup longer than the kernel: %v", err)
	}
}

func TestOldKernels(t *testing.T) {
	image := func(release string) *file {
		b := make([]byte, 1024)
		copy(b[0x202:], "HdrS")
		b[0x20e] = 0x80
		copy(b[0x280:], release+" (builder@host) #1\x00")
		return &file{path: "kernel", bytes: b}
	}
	for release, old := range map[string]bool{
		"6.1.0-56-cloud-amd64": true, "5.10.1": true, "6.6.99": true,
		"6.7.0": false, "6.12.95+deb12": false, "7.3": false,
		"": false, "x.y": false,
	} {
		if err := oldKernel(image(release), "tdx-guest"); (err != nil) != old {
			t.Errorf("%q: %v", release, err)
		}
	}
}

func FuzzSplit(f *testing.F) {
	f.Add(strings.ReplaceAll(snp, " ", "\n") + "-device\n{}")
	f.Add(
		"-blockdev\n{\"node-name\":\"a\",\"file\":\"a\"}\n-machine\npflash0=a,confidential-guest-support=s\n-object\nsev-guest,id=s",
	)
	f.Fuzz(func(t *testing.T, s string) {
		fs := &files{}
		defer fs.close()
		l, err := split(append([]string{"qemu"}, strings.Split(s, "\n")...), nil, fs)
		if err == nil && !slices.Contains(l.oracle, "-object") {
			t.Errorf("%q: the oracle gets %q", s, l.oracle)
		}
		_ = fmt.Sprint(descriptors(strings.Split(s, "\n")))
	})
}
