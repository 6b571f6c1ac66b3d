// Package host finds out what this host can do for a VM.
package host

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"github.com/klauspost/cpuid/v2"
	"golang.org/x/sys/unix"
)

// KVM says whether KVM can run a guest's firmware, and why not. A /dev/kvm that
// opens is not enough: inside some sandboxes it stands there without hardware
// virtualisation behind it and dies on the first unusual instruction.
func KVM() (ok bool, why string) { return kvm("/dev/kvm", "/proc/cpuinfo") }

func kvm(device, cpuinfo string) (bool, string) {
	if err := unix.Access(device, unix.R_OK|unix.W_OK); err != nil {
		return false, fmt.Sprintf("%s: %v", device, err)
	}
	f, err := os.Open(cpuinfo)
	if err != nil {
		return false, err.Error()
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, flags, _ := strings.Cut(lines.Text(), ":")
		if strings.TrimSpace(name) != "flags" {
			continue
		}
		for flag := range strings.FieldsSeq(flags) {
			if flag == "vmx" || flag == "svm" {
				return true, ""
			}
		}
		return false, device + " opens, but the processor shows neither vmx nor svm: firmware would not run"
	}
	return false, cpuinfo + " lists no processor flags"
}

// CBitPos returns the position of the memory encryption bit, 0 on processors
// without SEV (AMD, APM volume 3, CPUID Fn8000_001F EBX[5:0]).
func CBitPos() int {
	if !cpuid.CPU.AMDMemEncryption.Available {
		return 0
	}
	return int(cpuid.CPU.AMDMemEncryption.CBitPossition)
}
