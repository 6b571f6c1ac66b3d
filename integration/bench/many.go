package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// manyVMs is how many VMs run at once; each has a disk, a network of its own (passt, where it is
// installed) and its box.
const manyVMs = 200

func (b *bench) many() error {
	dir := filepath.Join(b.work, "many")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	network, what := "[[network]]\nmode = \"passt\"\n", "disk, passt"
	if _, err := exec.LookPath("passt"); err != nil {
		network, what = "", "disk, no network"
	}
	for i := range manyVMs {
		name := fmt.Sprintf("many%03d", i)
		if err := os.WriteFile(filepath.Join(dir, name+".raw"), make([]byte, 1<<20), 0o600); err != nil {
			return err
		}
		spec := fmt.Sprintf("memory = \"32MiB\"\naccel = \"tcg\"\n[[disk]]\nimage = \"%s.raw\"\n%s", name, network)
		if err := os.WriteFile(filepath.Join(dir, name+".toml"), []byte(spec), 0o600); err != nil {
			return err
		}
	}
	started, err := b.timed("vmlatch", "start", "--all", dir, "--hold")
	if err != nil {
		return err
	}
	var ps []time.Duration
	for range b.rounds {
		took, err := b.timed("vmlatch", "ps")
		if err != nil {
			return err
		}
		ps = append(ps, took)
	}
	stopped, err := b.timed("vmlatch", "stop", "--all", "--now")
	if err != nil {
		return err
	}
	bare := median(b.bare)
	each := func(total time.Duration) (time.Duration, float64) {
		return total / manyVMs, float64(total/manyVMs) / float64(bare)
	}
	d, ratio := each(started)
	b.row(fmt.Sprintf("each of %d VMs with %s, started at once, to a bare start", manyVMs, what), d, bare, ratio, "")
	d, ratio = each(stopped)
	b.row(fmt.Sprintf("each of %d VMs, stopped at once, to a bare start", manyVMs), d, bare, ratio, "")
	b.row(fmt.Sprintf("ps with %d VMs, to a bare start", manyVMs), median(ps), bare, float64(median(ps))/float64(bare),
		"< 200 ms")
	if _, err := b.vmlatch("rm", "--all"); err != nil {
		return err
	}
	return b.libvirt(dir)
}

// domain is the VM of [bench.many] for libvirt, which has no passt for it in every version.
const domain = `<domain type="qemu"><name>vmlatch-bench</name><memory unit="MiB">32</memory><vcpu>1</vcpu>
<os><type arch="x86_64" machine="q35">hvm</type></os>
<devices><emulator>%s</emulator>
<disk type="file" device="disk"><driver name="qemu" type="raw"/><source file="%s"/>
<target dev="vda" bus="virtio"/></disk><interface type="user"><model type="virtio"/></interface>
<serial type="pty"/><memballoon model="none"/></devices></domain>
`

// libvirt compares one such VM with the same of libvirt, where that is installed and runs.
func (b *bench) libvirt(dir string) error {
	if err := exec.Command("virsh", "-q", "list").Run(); err != nil {
		b.rows = append(b.rows, []string{"the same to libvirt", "", "", "", "it is not here, or does not run"})
		return nil
	}
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return err
	}
	virsh, err := exec.LookPath("virsh")
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "domain.xml")
	disk := filepath.Join(dir, "many000.raw")
	spec := fmt.Appendf(nil, "memory = \"32MiB\"\naccel = \"tcg\"\n[[disk]]\nimage = %q\n"+
		"[[network]]\nmode = \"user\"\n", disk)
	xml := fmt.Appendf(nil, domain, qemu, disk)
	for name, text := range map[string][]byte{file: xml, filepath.Join(dir, "one.toml"): spec} {
		if err := os.WriteFile(name, text, 0o644); err != nil {
			return err
		}
	}
	version, _ := exec.Command("virsh", "--version").Output()
	of := "libvirt " + string(bytes.TrimSpace(version))
	var start, stop, create, destroy []time.Duration
	for i := range b.rounds + 1 {
		var took [4]time.Duration
		for n, args := range [][]string{
			{"vmlatch", "start", filepath.Join(dir, "one.toml"), "--hold"},
			{"vmlatch", "stop", "one", "--now"},
			{virsh, "create", "--paused", file},
			{virsh, "destroy", "vmlatch-bench"},
		} {
			if took[n], err = b.timed(args[0], args[1:]...); err != nil {
				return err
			}
		}
		if i > 0 {
			start, stop = append(start, took[0]), append(stop, took[1])
			create, destroy = append(create, took[2]), append(destroy, took[3])
		}
	}
	b.row("start to paused with disk and network, to "+of, median(start), median(create), medianRatio(start, create),
		"<= 0.5")
	b.row("stop --now, to "+of, median(stop), median(destroy), medianRatio(stop, destroy), "<= 0.05")
	_, err = b.vmlatch("rm", "one")
	return err
}
