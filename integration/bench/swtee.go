package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// swtee compares a SEV launch on the emulated platform with a bare start of the
// same QEMU on the same KVM: whole processes, from fork to the end after "quit".
// Without /dev/kvm the two are a launch on the fake KVM and a start under TCG.
func (b *bench) swtee() error {
	firmware, err := filepath.Abs(".cache/guest/OVMF.amdsev.fd")
	if err != nil {
		return err
	}
	if _, err := os.Stat(firmware); err != nil {
		return fmt.Errorf("%w: run make setup", err)
	}
	accel, mode, what := "kvm", "--accel=under", "SEV launch under swtee, on KVM"
	if unix.Access("/dev/kvm", unix.R_OK|unix.W_OK) != nil {
		accel, mode, what = "tcg", "--fake-kvm", "SEV launch under swtee, on a fake KVM"
	}
	common := []string{"-S", "-nodefaults", "-display", "none", "-m", "256", "-qmp", "stdio", "-bios", firmware}
	bare := append([]string{"qemu-system-x86_64", "-accel", accel, "-machine", "q35"}, common...)
	launch := append([]string{
		filepath.Join(b.bin, "swtee"), "--quiet", mode, "--platform", filepath.Join(b.work, "platform"),
		"--", "qemu-system-x86_64", "-accel", "kvm",
		"-machine", "q35,confidential-guest-support=s0", "-object", "sev-guest,id=s0,cbitpos=51,reduced-phys-bits=1",
	}, common...)
	if _, err := startAndQuit(launch); err != nil { // makes the platform's keys
		return err
	}
	var launches, floors []time.Duration
	for range b.rounds {
		f, err := startAndQuit(bare)
		if err != nil {
			return err
		}
		l, err := startAndQuit(launch)
		if err != nil {
			return err
		}
		floors, launches = append(floors, f), append(launches, l)
	}
	b.row(what, median(launches), median(floors), medianRatio(launches, floors), "1.1")
	return nil
}

func startAndQuit(argv []string) (time.Duration, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(`{"execute":"qmp_capabilities"}{"execute":"quit"}`)
	var out strings.Builder
	cmd.Stderr = &out
	began := time.Now()
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("%s: %w\n%s", argv[0], err, out.String())
	}
	return time.Since(began), nil
}
