package launcher

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"

	"github.com/vmlatch/vmlatch/firmware/sev"
)

// PlatformError is an answer of QEMU's or the platform's that says no.
type PlatformError struct {
	Name string
	What string
	Err  error
	// Status is the platform firmware's code, if there was one.
	Status sev.Status
}

func (e *PlatformError) Error() string { return fmt.Sprintf("%s: %s: %v", e.Name, e.What, e.Err) }

// Unwrap returns the cause.
func (e *PlatformError) Unwrap() error { return e.Err }

// fwError finds the firmware's status code in QEMU's words. Patterns are compiled
// when an error has come: most starts never need one.
const fwError = `fw_error='?(?:0x)?([0-9a-f]+)`

func platformError(name, what string, err error) error {
	p := &PlatformError{Name: name, What: what, Err: err}
	if m := regexp.MustCompile(fwError).FindStringSubmatch(err.Error()); m != nil {
		if n, e := strconv.ParseUint(m[1], 10, 32); e == nil {
			p.Status = sev.Status(n)
		}
	}
	return p
}

// Advice says what an error of QEMU's means and what to do.
type Advice struct {
	Pattern string // regular expression
	Cause   string
	Fix     string
	Refused bool // the platform did not accept the owner's or host's claim
	Host    bool // this host lacks something
}

// adviceTable maps the words of QEMU and of the platform's firmware (QEMU,
// target/i386/sev.c) to causes. The first match counts.
var adviceTable = []Advice{
	{
		Pattern: `SNP_LAUNCH_FINISH.*fw_error=11 `,
		Cause:   "the launch has another digest than the ID block that its owner signed",
		Fix:     "compare firmware, kernel, command line, cpus and cpu with what the owner measured: latchkey explain finds the difference",
		Refused: true,
	},
	{
		Pattern: `SNP_LAUNCH_FINISH.*fw_error=(?:7|10) `,
		Cause:   "the ID block is for another policy, or its signature does not hold",
		Fix:     "make the ID block again for this policy: latchkey idblock make",
		Refused: true,
	},
	{
		Pattern: `LAUNCH_START.*fw_error=11 `,
		Cause:   "the platform cannot unwrap the session: it was made for another platform, or for another policy",
		Fix:     "make a new session with latchkey for this host's platform file and exactly the policy of the spec",
		Refused: true,
	},
	{
		Pattern: `LAUNCH_START.*fw_error=7 `,
		Cause:   "the policy asks for newer SEV firmware than this platform has",
		Fix:     "update the platform's firmware, or lower api= in the policy if its owner agrees",
		Refused: true,
	},
	{
		Pattern: `LAUNCH_START.*fw_error=6 `,
		Cause:   "the owner's certificate is malformed",
		Fix:     "copy the .godh file again, unchanged",
		Refused: true,
	},
	{
		Pattern: `fw_error='?1[ :]`,
		Cause:   "the secure processor is not initialised, or was reset",
		Fix:     "reload the kernel modules kvm_amd and ccp, or restart the host; the kernel's log says why (dmesg, lines with ccp)",
		Host:    true,
	},
	{
		Pattern: `fw_error=16 `,
		Cause:   "the platform has lost this guest: the secure processor was reset while it was launched",
		Fix:     "start the VM again",
		Host:    true,
	},
	{
		Pattern: `fw_error=(?:23|14) |sev_(?:common_)?kvm_init: failed to initialize ret=-(?:16|12) `,
		Cause:   "the platform has no free encryption slot, or needs to flush before it can give one out again",
		Fix:     "stop another confidential VM, or try again in a moment",
		Host:    true,
	},
	{
		Pattern: `inject secret.*fw_error=11 `,
		Cause:   "the packet was not made with this session's keys for this launch, or was changed on its way",
		Fix:     "take the measurement of this launch again and have its owner make a new packet",
		Refused: true,
	},
	{
		Pattern: `Not in correct state\. \(LSECRET\)`,
		Cause:   "the guest has already been released; secrets go in while it is paused",
		Fix:     "start the VM again with a new session",
		Refused: true,
	},
	{
		Pattern: `secret of \d+ bytes does not fit`,
		Cause:   "the secret is larger than the area that the firmware reserves for it",
		Fix:     "send a smaller secret, such as a key instead of what it opens",
		Refused: true,
	},
	{
		Pattern: `hashes table area is invalid|no secret area found`,
		Cause:   "this firmware has no area for kernel hashes or secrets",
		Fix:     "use an AmdSev build of OVMF, such as OVMF.amdsev.fd",
		Host:    true,
	},
	{
		Pattern: `launch measurement is not available|did not measure the guest`,
		Cause:   "the platform did not complete the launch measurement; the VM's log says which command failed (vmlatch logs --kind qemu)",
		Fix:     "start the VM again; a platform that keeps failing needs newer firmware",
		Refused: true,
	},
	{
		Pattern: `(?:LAUNCH_UPDATE|LAUNCH_START|LAUNCH_FINISH|LAUNCH_MEASURE|inject secret)[^;]* fw_error=[1-9]`,
		Cause:   "the secure processor refused a step of the launch",
		Fix:     "start the VM again; if it fails in the same way, update the platform's firmware",
		Refused: true,
	},
	{
		Pattern: `sev_(?:common_)?kvm_init|Failed to open /dev/sev|/dev/sev`,
		Cause:   "QEMU cannot use the secure processor",
		Fix:     "load kvm_amd with sev=1 and give this user access to /dev/sev, or try with --emulate",
		Host:    true,
	},
	{
		Pattern: `(?i)Failed to get "write" lock|Failed to get shared "write" lock`,
		Cause:   "another process uses the disk image",
		Fix:     "stop the other VM, or give this one an image of its own",
	},
	{
		Pattern: `(?i)cannot set up guest memory|Cannot allocate memory`,
		Cause:   "the host has not enough free memory for this VM",
		Fix:     "lower memory in the spec, or stop another VM",
		Host:    true,
	},
	{
		Pattern: `(?i)Could not set up host forwarding rule`,
		Cause:   "the host's port is taken",
		Fix:     "choose another port in forward",
	},
	{
		Pattern: `(?i)unsupported machine type|Invalid CPU|unable to find CPU model`,
		Cause:   "this QEMU does not know the machine type or CPU model",
		Fix:     "run the QEMU with -machine help or -cpu help, and correct the spec",
		Host:    true,
	},
	{
		Pattern: `is not a valid|Property .* not found|Parameter .* is unexpected|invalid object type`,
		Cause:   "this QEMU is too old for what the spec asks, or was built without it",
		Fix:     "install a newer QEMU, or name another one with qemu = in the spec",
		Host:    true,
	},
}

// Advise explains an error, if it is one of QEMU's known ones.
func Advise(err error) (Advice, bool) {
	text := ""
	var start *StartError
	var platform *PlatformError
	switch {
	case errors.As(err, &start):
		text = start.Error()
	case errors.As(err, &platform):
		text = platform.Error()
	default:
		return Advice{}, false
	}
	for _, a := range adviceTable {
		if regexp.MustCompile(a.Pattern).MatchString(text) {
			return a, true
		}
	}
	return Advice{}, false
}
