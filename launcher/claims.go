package launcher

import (
	"crypto/sha256"
	"os"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/exchange"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// claims hashes what the launch loaded, as the files are now; nil if they
// cannot be read any more.
func claims(in rundir.Inputs) *exchange.Claims {
	c := &exchange.Claims{}
	firmware, err := os.ReadFile(in.Firmware)
	if err != nil {
		return nil
	}
	c.Firmware = sha256.Sum256(firmware)
	if !in.KernelHashes {
		return c
	}
	initrd, err := in.Config.Before(in.Initrd)
	if err != nil {
		return nil
	}
	h, err := sev.HashKernelFiles(in.Kernel, initrd, in.Cmdline)
	if err != nil {
		return nil
	}
	c.Kernel = &h
	return c
}
