package launcher

import (
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/sev"
)

// planChecks look at the command line that a start would execute, as QEMU would
// read it, and at the files that it names.
var planChecks = []Check{
	{
		ID: "files-readable", Severity: Refuse, stage: planStage,
		Cause: "a file that the VM needs cannot be read", Fix: "paths in a spec start from the spec's own directory",
		Source: "open(2)",
		look: func(s *subject) (Verdict, string) {
			var missing []string
			for _, err := range s.plan.missingFiles() {
				missing = append(missing, err.Error())
			}
			return verdict(len(missing) == 0, "%s", strings.Join(missing, "; "))
		},
	},
	{
		ID: "owner-command", Severity: Refuse, stage: planStage, key: "latch.owner", when: func(s *subject) bool { return len(s.spec.Latch.Owner) > 0 },
		Cause: "the command that asks the guest's owner cannot be run", Fix: "name a program in PATH, or one by a path that starts from the spec's own directory",
		Source: "vmlatch help spec, [latch] owner",
		look: func(s *subject) (Verdict, string) {
			program := s.spec.Latch.Owner[0]
			if strings.ContainsRune(program, '/') {
				program = s.spec.abs(program)
			}
			_, err := exec.LookPath(program)
			return verdict(err == nil, "%v", err)
		},
	},
	{
		ID: "directories", Severity: Refuse, stage: planStage, ofHost: true,
		Cause: "the VM's directories cannot be made, or the paths of its sockets would be too long", Fix: "name others: run-dir and state-dir in host.toml, --run-dir, --state-dir",
		Source: "unix(7), sun_path",
		look: func(s *subject) (Verdict, string) {
			err := s.plan.Dirs.Usable(s.plan.Name)
			return verdict(err == nil, "%v", err)
		},
	},
	{
		ID: "firmware-stateless", Severity: Refuse, stage: planStage, key: "firmware", when: attested,
		Cause: "firmware in flash has a variable store beside it, which is not measured", Fix: "use one stateless firmware image",
		Source: "QEMU, docs/system/i386/tdx.rst; AMDSEV#223, #236",
		look: func(s *subject) (Verdict, string) {
			return verdict(s.options.machine("pflash0") == "" && s.options.machine("pflash1") == "", "pflash")
		},
	},
	{
		ID: "firmware-knows", Severity: Refuse, stage: planStage, key: "firmware", when: attested,
		Cause: "the firmware has nothing for the technology: the guest could not start, or only on one processor", Fix: "use a build of OVMF that has it",
		Source: "OVMF, ResetVector; QEMU, hw/i386/pc_sysfw_ovmf.c",
		look: func(s *subject) (Verdict, string) {
			if s.firmware == nil {
				return CheckUnknown, "the image cannot be read"
			}
			missing := s.firmware.lacks(s.tech, false) // hashes are another check's matter
			return verdict(missing == "", "%s", missing)
		},
	},
	{
		ID: "kernel-hashes-area", Severity: Refuse, stage: planStage, key: "firmware", when: func(s *subject) bool { return confidential(s) && s.spec.KernelHashes() },
		Cause: "the firmware has no area for kernel hashes, so it would not check the kernel", Fix: "use an AmdSev build of OVMF, such as OVMF.amdsev.fd",
		Source: "QEMU, target/i386/sev.c; OVMF, GUID 7255371f-3a3b-4b04-927b-1da6efa8d454",
		look: func(s *subject) (Verdict, string) {
			if s.firmware == nil {
				return CheckUnknown, "the image cannot be read"
			}
			return verdict(s.firmware.hashArea, "")
		},
	},
	{
		ID: "secret-area", Severity: Refuse, stage: planStage, key: "firmware", when: func(s *subject) bool { return isSEV(s) && s.spec.Latch.Until == UntilSecret },
		Cause: "the firmware has no area for the secret that the latch waits for", Fix: "use an AmdSev build of OVMF, such as OVMF.amdsev.fd",
		Source: "QEMU, docs/system/i386/amd-memory-encryption.rst; enarx/sev#35",
		look: func(s *subject) (Verdict, string) {
			if s.firmware == nil {
				return CheckUnknown, "the image cannot be read"
			}
			return verdict(s.firmware.secretArea, "")
		},
	},
	{
		ID: "igvm-alone", Severity: Refuse, stage: planStage, key: "firmware.image", when: func(s *subject) bool { return s.options.machine("igvm-cfg") != "" },
		Cause: "an IGVM file brings all that is measured; what stands beside it is not, or is dropped", Fix: "leave kernel, other firmware and ID block out",
		Source: "QEMU, docs/system/igvm.rst",
		look: func(s *subject) (Verdict, string) {
			for _, o := range []string{"-kernel", "-bios"} {
				if len(s.options.values[o]) > 0 {
					return CheckFailed, o
				}
			}
			c, _ := s.options.confidential()
			return verdict(s.options.machine("pflash0") == "" && c.props["id-block"] == "", "pflash or id-block")
		},
	},
	{
		ID: "session-files", Severity: Refuse, stage: planStage, key: "confidential.session", when: func(s *subject) bool { return isSEV(s) && s.spec.Confidential.Session != "" },
		Cause: "owner-cert or session cannot be read, or is no base64 of the right length", Fix: "copy the files of latchkey session again, unchanged",
		Source: "QEMU, docs/system/i386/amd-memory-encryption.rst; SEV API, chapters 4.3 and 6.2",
		look: func(s *subject) (Verdict, string) {
			c := s.spec.Confidential
			for _, f := range []struct {
				name string
				size int
			}{{c.OwnerCert, sev.CertificateSize}, {c.Session, sev.SessionSize}} {
				b, err := readBase64(f.name, 16<<10)
				if err != nil {
					return CheckFailed, err.Error()
				}
				if len(b) != f.size {
					return CheckFailed, f.name + ": has " + strconv.Itoa(len(b)) + " bytes, must have " + strconv.Itoa(f.size)
				}
			}
			return CheckOK, ""
		},
	},
	{
		ID: "cbitpos", Severity: Refuse, stage: planStage, when: func(s *subject) bool { return isSEV(s) || isSNP(s) },
		Cause: "the position of the encryption bit is not this processor's", Fix: "this is a defect of vmlatch: please report it",
		Source: "AMD, CPUID Fn8000_001F EBX[5:0]; QEMU, target/i386/sev.c",
		look: func(s *subject) (Verdict, string) {
			c, _ := s.options.confidential()
			return verdict(s.facts.cBitPos() > 0 && c.props["cbitpos"] == strconv.Itoa(s.facts.cBitPos()), "%s instead of %d", c.props["cbitpos"], s.facts.cBitPos())
		},
	},
	{
		ID: "reduced-phys-bits", Severity: Default, stage: planStage, when: func(s *subject) bool { return isSEV(s) || isSNP(s) },
		Cause: "a guest's CPUID tells of one lost address bit, whatever the host loses", Fix: "this is a defect of vmlatch: please report it",
		Source: "QEMU, target/i386/sev.c, query-sev-capabilities; svsm, launch_guest.sh",
		look: func(s *subject) (Verdict, string) {
			c, _ := s.options.confidential()
			return verdict(c.props["reduced-phys-bits"] == "1", "%s", c.props["reduced-phys-bits"])
		},
	},
	{
		ID: "sev-policy-es", Severity: Default, stage: planStage, key: "confidential.policy", when: isSEV,
		Cause: "the policy's ES bit says otherwise than the technology", Fix: "this is a defect of vmlatch: please report it",
		Source: "SEV API, chapter 3, table 2; nova 0x33, 0x37",
		look: func(s *subject) (Verdict, string) {
			c, _ := s.options.confidential()
			n, _ := strconv.ParseUint(c.props["policy"], 10, 32)
			return verdict((sev.Policy(n)&sev.PolicyES != 0) == (s.tech.name == TechnologySEVES), "%#x", n)
		},
	},
	{
		ID: "vm-type-explicit", Severity: Default, stage: planStage, key: "confidential.vmsa", when: func(s *subject) bool { return isSEV(s) && s.facts.Info.HasObject("sev-guest", "legacy-vm-type") },
		Cause: "QEMU would choose how KVM sets up the guest, which changes the measurement", Fix: "this is a defect of vmlatch: please report it",
		Source: "QEMU 9.1 notes; sev-snp-measure#48",
		look: func(s *subject) (Verdict, string) {
			c, _ := s.options.confidential()
			v := c.props["legacy-vm-type"]
			return verdict(v == "on" || v == "off", "%q", v)
		},
	},
	{
		ID: "id-block-size", Severity: Refuse, stage: planStage, key: "confidential.id-block", when: func(s *subject) bool { return isSNP(s) && s.spec.Confidential.IDBlock != "" },
		Cause: "an ID block has 96 bytes and its authentication 4096, exactly", Fix: `make them again: "latchkey idblock make"`,
		Source: "QEMU, qapi/qom.json; SNP ABI, chapters 8.17 and 8.18",
		look: func(s *subject) (Verdict, string) {
			a, b := len(s.facts.IDBlock), len(s.facts.IDAuth)
			return verdict(a == 96 && b == 4096, "%d and %d bytes", a, b)
		},
	},
	{
		ID: "smm-off", Severity: Default, stage: planStage, when: func(s *subject) bool { return s.tech.registers },
		Cause: "system management mode would need the host to see the guest's registers", Fix: "this is a defect of vmlatch: please report it",
		Source: "QEMU, docs/system/i386/amd-memory-encryption.rst, tdx.rst; libvirt kbase",
		look:   func(s *subject) (Verdict, string) { return verdict(s.options.machine("smm") == "off", "") },
	},
	{
		ID: "irqchip", Severity: Default, stage: planStage, when: func(s *subject) bool { return s.tech.registers },
		Cause: "guests with protected registers need KVM's own interrupt controller, and TDX one that is split: QEMU sees to it, unless it is told otherwise", Fix: "this is a defect of vmlatch: please report it",
		Source: "QEMU, target/i386/kvm/tdx.c; libvirt kbase",
		look: func(s *subject) (Verdict, string) {
			told := s.options.machine("kernel-irqchip") + s.options.machine("kernel_irqchip") + properties(s.options.one("-accel"))["kernel-irqchip"]
			return verdict(told == "" || isTDX(s) && told == "split", "%s", told)
		},
	},
	{
		ID: "tdx-machine", Severity: Default, stage: planStage, when: isTDX,
		Cause: "the machine has a device that TDX guests cannot have", Fix: "this is a defect of vmlatch: please report it",
		Source: "QEMU, docs/system/i386/tdx.rst; canonical/tdx",
		look: func(s *subject) (Verdict, string) {
			pic, hpet := s.options.machine("pic"), s.options.machine("hpet")
			return verdict(pic != "on" && (hpet == "off" || !s.facts.Info.HasMachine("hpet")), "pic=%s, hpet=%s", pic, hpet)
		},
	},
	{
		ID: "private-memory", Severity: Default, stage: planStage, when: isPrivate,
		Cause: "the memory that a guest shares must lie in a shared memfd, which is taken as it is used", Fix: "leave [memory-backend] out",
		Source: "AMDSEV, snp-latest; svsm, launch_guest.sh",
		look: func(s *subject) (Verdict, string) {
			for _, o := range s.options.objects() {
				if o.props["id"] == s.options.machine("memory-backend") {
					return verdict(o.kind == "memory-backend-memfd" && o.props["share"] == "on", "%s, share=%s", o.kind, o.props["share"])
				}
			}
			return CheckFailed, "there is no backend"
		},
	},
	{
		ID: "memory-not-locked", Severity: Default, stage: planStage, when: isPrivate,
		Cause: "private memory is not pinned, so QEMU needs no leave to pin it", Fix: "this is a defect of vmlatch: please report it",
		Source: "nova, needs_locked_memory",
		look:   func(s *subject) (Verdict, string) { return verdict(s.plan.MemoryLock == 0, "%v", s.plan.MemoryLock) },
	},
	{
		ID: "machine-defaults", Severity: Default, stage: planStage, when: confidential,
		Cause: "the machine merges or dumps the guest's memory, or has the port by which VMware's tools talk", Fix: "this is a defect of vmlatch: please report it",
		Source: "AMDSEV, launch-qemu.sh; PVE",
		look: func(s *subject) (Verdict, string) {
			for _, p := range []string{"vmport", "mem-merge", "dump-guest-core"} {
				if s.options.machine(p) != "off" {
					return CheckFailed, p
				}
			}
			return CheckOK, ""
		},
	},
	{
		ID: "no-reboot", Severity: Default, stage: planStage, when: confidential,
		Cause: "a reset guest would need a new launch and a new measurement", Fix: "this is a defect of vmlatch: please report it",
		Source: "AMDSEV; QEMU 11.0, confidential-guest-reset",
		look: func(s *subject) (Verdict, string) {
			return verdict(s.options.flags["-no-reboot"] || s.facts.resets(s.spec), "")
		},
	},
	{
		ID: "paused-start", Severity: Default, stage: planStage, when: confidential,
		Cause: "the guest would run before anybody has looked, or come from somewhere else", Fix: "this is a defect of vmlatch: please report it",
		Source: "design: nothing runs before the latch opens; migration of confidential guests is not supported",
		look: func(s *subject) (Verdict, string) {
			return verdict(s.options.flags["-S"] && len(s.options.values["-incoming"]) == 0 && len(s.options.values["-loadvm"]) == 0, "")
		},
	},
	{
		ID: "fixed-size", Severity: Default, stage: planStage, when: confidential,
		Cause: "CPUs or memory could be added later, unmeasured; TDX takes one socket", Fix: "this is a defect of vmlatch: please report it",
		Source: "sev-snp-measure; kata-containers, qemu_amd64.go, kata-containers#13440",
		look: func(s *subject) (Verdict, string) {
			smp, m := s.options.one("-smp"), s.options.one("-m")
			return verdict(!strings.ContainsAny(smp+m, ",=") && smp != "" && m != "", "-smp %s -m %s", smp, m)
		},
	},
	{
		ID: "one-monitor", Severity: Default, stage: planStage,
		Cause: "there is a monitor that vmlatch does not know, past which no latch holds", Fix: "this is a defect of vmlatch: please report it",
		Source: "design: three monitors, of which one only writes events",
		look: func(s *subject) (Verdict, string) {
			for _, o := range []string{"-monitor", "-qmp", "-gdb", "-serial"} {
				for _, v := range s.options.values[o] {
					if v != "chardev:console" {
						return CheckFailed, o + " " + v
					}
				}
			}
			return verdict(len(s.options.values["-mon"]) == 3, "%d monitors", len(s.options.values["-mon"]))
		},
	},
	{
		ID: "disks-private", Severity: Warn, stage: planStage, key: "disk", when: confidential,
		Cause: "a disk image can be written by others on this host; disks are never measured", Fix: "take away the permission, and encrypt the disk with a key that only the guest gets",
		Source: "QEMU, docs/system/i386/amd-memory-encryption.rst",
		look: func(s *subject) (Verdict, string) {
			for _, d := range s.spec.Disks {
				if info, err := os.Stat(d.Image); err == nil && info.Mode().Perm()&0o002 != 0 {
					return CheckFailed, d.Image
				}
			}
			return CheckOK, ""
		},
	},
}
