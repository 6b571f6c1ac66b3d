package main

import (
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/swtee/guestdev/tsmprobe"
)

// kernelTSM shows how the kernel's own configfs-tsm behaves, with a provider that has the
// attributes of sev-guest, and then of tdx-guest.
func kernelTSM() error {
	if err := modules(); err != nil {
		return err
	}
	if err := unix.Mount("configfs", "/sys/kernel/config", "configfs", 0, ""); err != nil {
		return err
	}
	for _, l := range append(tsmprobe.Probe(tsmReports), tsmprobe.Levels(tsmReports)...) {
		say("kernel sev %s", l)
	}
	if err := unix.DeleteModule("test_tsm", 0); err != nil {
		return err
	}
	files, err := filepath.Glob("/modules/*-test_tsm.ko")
	if err != nil || len(files) == 0 {
		return os.ErrNotExist
	}
	f, err := os.Open(files[0])
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "tdx=1", 0); err != nil {
		return err
	}
	for _, l := range tsmprobe.Probe(tsmReports) {
		say("kernel tdx %s", l)
	}
	return nil
}

// wantsKernelTSM reports whether the command line asks for it.
func wantsKernelTSM(cmdline string) bool { return strings.Contains(cmdline, "vmlatch.kernel-tsm") }
