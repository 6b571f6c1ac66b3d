package check

import (
	"os"
	"os/exec"
	"strings"

	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// planChecks look at the command line that a start would execute, as QEMU would
// read it, and at the files that it names.
func planChecks() []tee.Check {
	return []tee.Check{
		{
			ID:       FilesReadable,
			Severity: tee.Refuse,
			Stage:    tee.PlanStage,
			Cause:    "a file that the VM needs cannot be read",
			Fix:      fault.FixPaths + "; a file there: " + fault.FixRead,
			Source:   "open(2)",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				var missing []string
				for _, err := range s.Plan.Missing() {
					missing = append(missing, err.Error())
				}
				return tee.Verify(len(missing) == 0, "%s", strings.Join(missing, "; "))
			},
		},
		{
			ID:       "owner-command",
			Severity: tee.Refuse,
			Stage:    tee.PlanStage,
			Key:      "latch.owner",
			When:     func(s *tee.Subject) bool { return len(s.Latch.Owner) > 0 },
			Cause:    "the command that asks the guest's owner cannot be run",
			Fix:      "name a program in PATH, or one by a path that starts from the spec's own directory",
			Source:   "vmlatch help spec, [latch] owner",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				program := s.Latch.Owner[0]
				if strings.ContainsRune(program, '/') {
					program = s.File.Abs(program)
				}
				_, err := exec.LookPath(program)
				return tee.Verify(err == nil, "%v", err)
			},
		},
		{
			ID:       "directories",
			Severity: tee.Refuse,
			Stage:    tee.PlanStage,
			OfHost:   true,
			Cause:    "the VM's directories cannot be made, or the paths of its sockets would be too long",
			Fix:      "name others: run-dir and state-dir in host.toml, --run-dir, --state-dir",
			Source:   "unix(7), sun_path",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				err := s.Plan.Dirs.Usable(s.Plan.Name)
				return tee.Verify(err == nil, "%v", err)
			},
		},
		{
			ID:       "firmware-stateless",
			Severity: tee.Refuse,
			Stage:    tee.PlanStage,
			Key:      "firmware",
			When:     attested,
			Cause:    "firmware in flash has a variable store next to it, which is not measured",
			Fix:      "use one stateless firmware image",
			Source:   "QEMU, docs/system/i386/tdx.rst; AMDSEV#223, #236",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				return tee.Verify(s.Options.Machine("pflash0") == "" && s.Options.Machine("pflash1") == "", "pflash")
			},
		},
		{
			ID:       "firmware-knows",
			Severity: tee.Refuse,
			Stage:    tee.PlanStage,
			Key:      "firmware",
			When:     attested,
			Cause: "the firmware has nothing for the technology:" +
				" the guest could not start, or only on one processor",
			Fix:    fault.FixOVMF,
			Source: "OVMF, ResetVector; QEMU, hw/i386/pc_sysfw_ovmf.c",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				return s.ReadImage(func(i *plan.Image) (tee.Verdict, string) {
					missing := s.LacksTables(i) // the area for kernel hashes is another check's matter
					return tee.Verify(missing == "", "%s", missing)
				})
			},
		},
		{
			ID:       "kernel-hashes-area",
			Severity: tee.Refuse,
			Stage:    tee.PlanStage,
			Key:      "firmware",
			When:     func(s *tee.Subject) bool { return confidential(s) && s.KernelHashes },
			Cause:    "the firmware has no area for kernel hashes, so it would not check the kernel",
			Fix:      fault.FixAmdSev,
			Source:   "QEMU, target/i386/sev.c; OVMF, GUID 7255371f-3a3b-4b04-927b-1da6efa8d454",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				return s.ReadImage(func(i *plan.Image) (tee.Verdict, string) { return tee.Verify(i.HashArea, "") })
			},
		},
		{
			ID:       "secure-boot-kernel",
			Severity: tee.Warn,
			Stage:    tee.PlanStage,
			Key:      "firmware",
			When: func(s *tee.Subject) bool {
				return confidential(s) && s.Options.One("-kernel") != "" && s.Options.One("-shim") == ""
			},
			Cause: "the firmware has Secure Boot keys of its own, and starts a kernel directly only if one of" +
				" them has signed it: no distribution's kernel is",
			Fix: "use a build without keys, such as OVMF.fd: a measured kernel needs no Secure Boot",
			Source: "edk2, OvmfPkg/Library/X86QemuLoadImageLib; tianocore/edk2#10628; seen with Debian's" +
				" OVMF.inteltdx.ms.fd",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				return s.ReadImage(
					func(i *plan.Image) (tee.Verdict, string) { return tee.Verify(!i.PlatformKey, "") },
				)
			},
		},
		{
			ID:       "qemu-confined",
			Severity: tee.Warn,
			Stage:    tee.PlanStage,
			When: func(s *tee.Subject) bool {
				return s.Facts.Confine != nil && !s.Facts.Emulated()
			},
			Cause:  "a guest that takes over QEMU would reach all that its user does",
			Fix:    "name the program itself as qemu, and not a script that starts it",
			Source: "docs/hypervisor-host.md",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				return tee.Verify(s.Plan.Unconfined == "", "%s", s.Plan.Unconfined)
			},
		},
		{
			ID:       "network-loopback",
			Severity: tee.Warn,
			Stage:    tee.PlanStage,
			Key:      "network",
			Cause:    "the guest reaches what listens on this host's loopback, which often asks for no password",
			Fix:      `mode = "passt" keeps it away from there, and restrict = true from everything`,
			Source:   "QEMU, docs/system/devices/net.rst; passt(1), --no-map-gw",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				return tee.Verify(!s.Networks.OnLoopback(), "")
			},
		},
		{
			ID:       "network-names",
			Severity: tee.Warn,
			Stage:    tee.PlanStage,
			Key:      "network",
			When:     func(s *tee.Subject) bool { return s.Networks.Passt() && !s.Networks.OnLoopback() },
			Cause:    "the guest is told of no name server that it can reach",
			Fix:      "name one in the guest, or in the network-config of [config]",
			Source:   "passt(1), --dns; systemd-resolved.service(8)",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				return tee.Verify(s.Facts.NoNames == "", "%s", s.Facts.NoNames)
			},
		},
		{
			ID:       "igvm-alone",
			Severity: tee.Refuse,
			Stage:    tee.PlanStage,
			Key:      "firmware.image",
			When:     func(s *tee.Subject) bool { return s.Options.Machine("igvm-cfg") != "" },
			Cause:    "an IGVM file brings all that is measured; what is next to it is not, or is dropped",
			Fix:      "leave kernel, other firmware and ID block out",
			Source:   "QEMU, docs/system/igvm.rst",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				for _, o := range []string{"-kernel", "-bios"} {
					if len(s.Options.Values[o]) > 0 {
						return tee.Failed, o
					}
				}
				c, _ := s.Options.Protection()
				return tee.Verify(s.Options.Machine("pflash0") == "" && c.Props["id-block"] == "",
					"pflash or id-block")
			},
		},
		{
			ID:       "smm-off",
			Severity: tee.Default,
			Stage:    tee.PlanStage,
			When:     registers,
			Cause:    "system management mode would need the host to see the guest's registers",
			Fix:      tee.Defect,
			Source:   "QEMU, docs/system/i386/amd-memory-encryption.rst, tdx.rst; libvirt kbase",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				return tee.Verify(s.Options.Machine("smm") == "off", "")
			},
		},
		{
			ID:       "irqchip",
			Severity: tee.Default,
			Stage:    tee.PlanStage,
			When:     registers,
			Cause: "guests with protected registers need KVM's own interrupt controller, and TDX one that is split:" +
				" QEMU sees to it, unless it is told otherwise",
			Fix:    tee.Defect,
			Source: "QEMU, target/i386/kvm/tdx.c; libvirt kbase",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				told := s.Options.Machine("kernel-irqchip") + s.Options.Machine("kernel_irqchip") +
					plan.Properties(s.Options.One("-accel"))["kernel-irqchip"]
				return tee.Verify(told == "" || told == s.Traits().IRQChip, "%s", told)
			},
		},
		{
			ID:       "private-memory",
			Severity: tee.Default,
			Stage:    tee.PlanStage,
			When:     private,
			Cause:    "the memory that a guest shares must lie in a shared memfd, which is taken as it is used",
			Fix:      "leave [memory-backend] out",
			Source:   "AMDSEV, snp-latest; svsm, launch_guest.sh",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				for _, o := range s.Options.Objects() {
					if o.Props["id"] == s.Options.Machine("memory-backend") {
						memfd, share := o.Kind == "memory-backend-memfd", o.Props["share"]
						return tee.Verify(memfd && share == "on", "%s, share=%s", o.Kind, share)
					}
				}
				return tee.Failed, "there is no backend"
			},
		},
		{
			ID:       "memory-not-locked",
			Severity: tee.Default,
			Stage:    tee.PlanStage,
			When:     private,
			Cause:    "private memory is not pinned, so QEMU needs no leave to pin it",
			Fix:      tee.Defect,
			Source:   "nova, needs_locked_memory",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				return tee.Verify(s.Plan.MemoryLock == 0, "%v", s.Plan.MemoryLock)
			},
		},
		{
			ID:       "machine-defaults",
			Severity: tee.Default,
			Stage:    tee.PlanStage,
			When:     confidential,
			Cause:    "the machine merges or dumps the guest's memory, or has the port by which VMware's tools talk",
			Fix:      tee.Defect,
			Source:   "AMDSEV, launch-qemu.sh; PVE",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				for _, p := range []string{"vmport", "mem-merge", "dump-guest-core"} {
					if s.Options.Machine(p) != "off" {
						return tee.Failed, p
					}
				}
				return tee.OK, ""
			},
		},
		{
			ID:       "no-reboot",
			Severity: tee.Default,
			Stage:    tee.PlanStage,
			When:     confidential,
			Cause:    "a reset guest would need a new launch and a new measurement",
			Fix:      tee.Defect,
			Source:   "AMDSEV; QEMU 11.0, confidential-guest-reset",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				return tee.Verify(s.Options.Flags["-no-reboot"] || s.Facts.Resets(&s.Guest.Guest, s.Traits()), "")
			},
		},
		{
			ID:       "paused-start",
			Severity: tee.Default,
			Stage:    tee.PlanStage,
			When:     confidential,
			Cause:    "the guest would run before it has been looked at, or come from somewhere else",
			Fix:      tee.Defect,
			Source:   "design: nothing runs before the latch opens; migration of confidential guests is not supported",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				elsewhere := len(s.Options.Values["-incoming"]) + len(s.Options.Values["-loadvm"])
				return tee.Verify(s.Options.Flags["-S"] && elsewhere == 0, "")
			},
		},
		{
			ID:       "fixed-size",
			Severity: tee.Default,
			Stage:    tee.PlanStage,
			When:     confidential,
			Cause:    "CPUs or memory could be added later, unmeasured; TDX takes one socket",
			Fix:      tee.Defect,
			Source:   "sev-snp-measure; kata-containers, qemu_amd64.go, kata-containers#13440",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				smp, m := s.Options.One("-smp"), s.Options.One("-m")
				return tee.Verify(!strings.ContainsAny(smp+m, ",=") && smp != "" && m != "", "-smp %s -m %s", smp, m)
			},
		},
		{
			ID:       "one-monitor",
			Severity: tee.Default,
			Stage:    tee.PlanStage,
			Cause:    "there is a monitor that vmlatch does not know, past which no latch holds",
			Fix:      tee.Defect,
			Source:   "design: three monitors, of which one only writes events",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				for _, o := range []string{"-monitor", "-qmp", "-gdb", "-serial"} {
					for _, v := range s.Options.Values[o] {
						if v != "chardev:console" {
							return tee.Failed, o + " " + v
						}
					}
				}
				return tee.Verify(len(s.Options.Values["-mon"]) == 3, "%d monitors", len(s.Options.Values["-mon"]))
			},
		},
		{
			ID:       "disks-private",
			Severity: tee.Warn,
			Stage:    tee.PlanStage,
			Key:      "disk",
			When:     confidential,
			Cause:    "a disk image can be written by others on this host; disks are never measured",
			Fix:      "take away the permission, and encrypt the disk with a key that only the guest gets",
			Source:   "QEMU, docs/system/i386/amd-memory-encryption.rst",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				for _, d := range s.Disks {
					if info, err := os.Stat(d.Image); err == nil && info.Mode().Perm()&0o002 != 0 {
						return tee.Failed, d.Image
					}
				}
				return tee.OK, ""
			},
		},
	}
}
