package host

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/sev"
)

// Lines by which the kernel says that the secure processor, or the TDX module, did not
// start (Linux, drivers/crypto/ccp/sev-dev.c; arch/x86/virt/vmx/tdx/tdx.c).
var (
	reSEVFailed   = compiled(`(SEV|SEV-SNP): failed to INIT\S*(?:.*?error (0x[0-9a-fA-F]+))?`)
	reSEVCode     = compiled(`\brc (-?\d+)`)
	rePSPDead     = compiled(`sev command (0x[0-9a-fA-F]+) timed out, disabling PSP`)
	reSEVDisabled = compiled(`(SEV|SEV-SNP): .*\bdisabled`)
	reTDXFailed   = compiled(`tdx: (?:module initialization failed|initialization failed)(?: \((-?\d+)\))?`)
)

// pspFailures are the technologies of AMD's that the secure processor refused when the
// module that talks to it was loaded last, with the reason: of SEV also for SEV-ES.
//
// A load logs its failures first, and one line with an API version in any case. A further
// such line without a failure before it is of a load that went well.
func pspFailures(log string) map[string]string {
	failed := map[string]string{}
	ended := false // the load whose lines were read last
	note := func(technology, why string) {
		if ended {
			clear(failed)
			ended = false
		}
		failed[technology] = why
	}
	for line := range strings.Lines(log) {
		switch {
		case reSEVFailed().MatchString(line):
			m := reSEVFailed().FindStringSubmatch(line)
			note(m[1], "the secure processor did not start"+statusWords(m[2], line))
		case rePSPDead().MatchString(line):
			// Also while it runs: then the next load begins anew.
			why := "the kernel has given the secure processor up, until it is loaded anew: command " +
				rePSPDead().FindStringSubmatch(line)[1] + " timed out"
			failed["SEV"], failed["SEV-SNP"] = why, why
		case reSEVDisabled().MatchString(line):
			m := reSEVDisabled().FindStringSubmatch(line)
			note(
				m[1],
				"the kernel says that "+m[1]+" is disabled: "+strings.TrimSpace(line[strings.Index(line, m[1]+":"):]),
			)
		case reSEVAPI().MatchString(line), reSNPAPI().MatchString(line):
			if ended {
				clear(failed)
			}
			ended = true
		}
	}
	return failed
}

// statusWords explains a status in hexadecimal, or the kernel's own code in the line where
// the firmware gave none; "" without either.
func statusWords(hex, line string) string {
	const notCalled = 1<<32 - 1 // the kernel's value before it has called the firmware
	code, err := strconv.ParseUint(hex, 0, 32)
	if m := reSEVCode().FindStringSubmatch(line); m != nil && (err != nil || code == 0 || code == notCalled) {
		if rc, err := strconv.Atoi(m[1]); err == nil && rc < 0 {
			return fmt.Sprintf(": %v (rc %d), without a status of its firmware", unix.Errno(-rc), rc)
		}
	}
	if err != nil {
		return ""
	}
	if code > 0x7fff { // of the secure processor's other parts, not of the SEV firmware
		return fmt.Sprintf(": error %#x, which is the secure processor's own", code)
	}
	s := sev.Status(code)
	return fmt.Sprintf(": error %#x, %s (%s)", code, s.Name(), s.Text())
}

// fixPSP is what reports say helps.
const fixPSP = "update the machine's setup (BIOS) and the SEV firmware (linux-firmware, amd/), enable SEV-SNP" +
	" in all of" +
	" its places in the setup (SNP memory coverage, IOMMU), and do not switch SMT off half-way; then reboot, or load" +
	" the modules ccp and kvm_amd again"
