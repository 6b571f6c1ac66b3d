package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/vmlatch/vmlatch/integration/qemus"
)

// twin times a trust domain from the start of swtee until the guest's init runs, against the same
// guest booted plain by the same QEMU under TCG. The firmware checks nothing in either.
func (b *bench) twin() error {
	coco, err := filepath.Abs(".cache/guest/coco")
	if err != nil {
		return err
	}
	qemu := qemus.Path("11.1")
	firmware := filepath.Join(coco, "OVMF.fd")
	if qemu == "" {
		qemu = "QEMU 11.1"
	}
	for _, f := range []string{qemu, firmware, filepath.Join(coco, "vmlinuz")} {
		if _, err := os.Stat(f); err != nil {
			fmt.Fprintf(os.Stderr, "bench: no guest by two QEMUs is timed: %v (make qemu-matrix)\n", err)
			return nil
		}
	}
	common := []string{
		"-smp", "1", "-m", "384", "-bios", firmware, "-nodefaults", "-display", "none", "-serial", "stdio",
		"-no-reboot",
		"-kernel", filepath.Join(coco, "vmlinuz"), "-initrd", filepath.Join(coco, "initrd.img"),
		"-append", "console=ttyS0 quiet",
	}
	plain := append([]string{qemu, "-accel", "tcg", "-machine", "q35,vmport=off", "-cpu", "max"}, common...)
	launched := append([]string{
		filepath.Join(
			b.bin,
			"swtee",
		), "--quiet", "--accel", "twin", "--platform", filepath.Join(b.work, "platform"), "--",
		qemu, "-accel", "kvm", "-machine", "q35,vmport=off,kernel_irqchip=split,confidential-guest-support=t0",
		"-cpu", "host", "-object", "tdx-guest,id=t0",
	}, common...)
	const boots = 3 // each takes seconds
	var floors, times []time.Duration
	for range boots {
		f, err := untilInit(plain)
		if err != nil {
			return err
		}
		l, err := untilInit(launched)
		if err != nil {
			return err
		}
		floors, times = append(floors, f), append(times, l)
	}
	b.row(
		"TDX launch to the guest's init, by two QEMUs",
		median(times),
		median(floors),
		medianRatio(times, floors),
		"1.25",
	)
	return nil
}

// untilInit runs a guest until its init speaks, and kills it.
func untilInit(argv []string) (time.Duration, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	var errs strings.Builder
	cmd.Stderr = &errs
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	for in := bufio.NewScanner(out); in.Scan(); {
		if strings.Contains(in.Text(), "vmlatch-guest: up") {
			return time.Since(began), nil
		}
	}
	return 0, fmt.Errorf("%s: the guest does not boot: %s", argv[0], errs.String())
}
