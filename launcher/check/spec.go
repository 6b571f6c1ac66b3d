package check

import (
	"cmp"
	"regexp"
	"strings"
	"sync"

	"github.com/vmlatch/vmlatch/launcher/tee"
)

// When a check applies.
func confidential(s *tee.Subject) bool  { return s.Traits().Confidential }
func attested(s *tee.Subject) bool      { return s.Traits().Attested }
func private(s *tee.Subject) bool       { return s.Traits().Private }
func modelMeasured(s *tee.Subject) bool { return s.Traits().ModelMeasured }
func registers(s *tee.Subject) bool     { return s.Traits().Registers }

// model is the CPU model to recommend where it is measured.
const model = "EPYC-v4"

// versioned matches models such as EPYC-Milan-v1.
var versioned = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`-v\d+$`) })

// specChecks need the spec alone. ParseSpec makes them, so that a library's user
// gets no spec that they refuse.
func specChecks() []tee.Check {
	return []tee.Check{
		{
			ID:       "machine-q35",
			Severity: tee.Refuse,
			Key:      "machine",
			When:     confidential,
			Cause:    "confidential guests need the machine type q35",
			Fix:      `write machine = "q35", or a version of it`,
			Source:   "nova hardware.py, _check_machine_type; libvirt, launch_security_sev.rst",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				m := s.Machine
				return tee.Verify(m == "q35" || strings.HasPrefix(m, "pc-q35"), "%q: confidential guests need q35", m)
			},
		},
		{
			ID:       "no-variable-store",
			Severity: tee.Refuse,
			Key:      "firmware.vars",
			When:     attested,
			Cause:    "a variable store is not measured: the host could change what the guest boots",
			Fix:      "use one stateless firmware image, and leave vars out",
			Source:   "QEMU, docs/system/i386/amd-memory-encryption.rst; nova, stateless firmware",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				return tee.Verify(s.Firmware.Vars == "" && !s.Firmware.SecureBoot,
					"%s: a variable store is not measured: the host could change what the guest boots",
					cmp.Or(s.Firmware.Vars, "secure-boot"))
			},
		},
		{
			ID:       "secure-boot-direct",
			Severity: tee.Warn,
			OfSpec:   true,
			Key:      "kernel.image",
			When:     func(s *tee.Subject) bool { return s.Firmware.SecureBoot },
			Cause: "a kernel that QEMU loads may start without a valid signature: older firmware has a loader" +
				" for it that looks at none",
			Fix:    "boot from the disk: leave [kernel] out",
			Source: "edk2, OvmfPkg/Library/X86QemuLoadImageLib; seen with Debian's OVMF 2022.11",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				return tee.Verify(s.Kernel.Image == "", "")
			},
		},
		{
			ID:       "kernel-hashes-kernel",
			Severity: tee.Refuse,
			Key:      "confidential.kernel-hashes",
			When:     confidential,
			Cause:    "kernel-hashes is on, and there is no kernel to measure",
			Fix:      "give [kernel] image, or leave kernel-hashes out",
			Source:   "QEMU, target/i386/sev.c",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				return tee.Verify(!s.KernelHashes || s.Kernel.Image != "", "there is no kernel to measure")
			},
		},
		{
			ID:       "kernel-measured",
			Severity: tee.Warn,
			Key:      "confidential.kernel-hashes",
			When:     func(s *tee.Subject) bool { return s.Traits().KernelHashes && s.Kernel.Image != "" },
			Cause:    "kernel, initrd and command line are not measured: the host can exchange them",
			Fix:      "write kernel-hashes = true",
			Source:   "QEMU, docs/system/i386/amd-memory-encryption.rst",
			Look:     func(s *tee.Subject) (tee.Verdict, string) { return tee.Verify(s.KernelHashes, "") },
		},
		{
			ID:       "cpu-model-named",
			Severity: tee.Refuse,
			Key:      "cpu",
			When:     modelMeasured,
			Cause: "the registers that a CPU starts with are measured," +
				" so its model must have a name that means the same everywhere",
			Fix:    "name a model such as " + model,
			Source: "kata-containers#12210; sev-snp-measure --vcpu-type",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				m := s.Model()
				return tee.Verify(m != "host" && m != "max",
					"%q: the registers that a CPU starts with are measured; name a model such as %s", m, model)
			},
		},
		{
			ID:       "cpu-model-versioned",
			Severity: tee.Warn,
			Key:      "cpu",
			When:     func(s *tee.Subject) bool { return modelMeasured(s) && s.CPU != "" },
			Cause: "the CPU model has no version: what its name stands for depends on the machine type," +
				" and it is measured",
			Fix:    "add the version, as in EPYC-Milan-v1",
			Source: "QEMU, docs/system/cpu-models-x86.rst; sev-snp-measure --vcpu-type",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				m := s.Model()
				return tee.Verify(versioned().MatchString(m), "%s", m)
			},
		},
		{
			ID:       "private-memory-backend",
			Severity: tee.Refuse,
			Key:      "memory-backend.type",
			When:     private,
			Cause:    "guests with private memory share the rest of it with the host through a memfd",
			Fix:      "leave type and share of [memory-backend] out",
			Source:   "AMDSEV, snp-latest; svsm, launch_guest.sh",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				b := s.Backend
				return tee.Verify(b.Type != "ram" && (b.Share == nil || *b.Share), "must be memfd with share = true")
			},
		},
		{
			ID:       "private-memory-twice",
			Severity: tee.Warn,
			Key:      "memory-backend.prealloc",
			When:     private,
			Cause: "prealloc takes the memory that the guest shares for the whole size," +
				" in addition to its private memory",
			Fix:    "leave prealloc out",
			Source: "cloud-hypervisor#8501; AMDSEV#250",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				p := s.Backend.Prealloc
				return tee.Verify(p == nil || !*p, "")
			},
		},
	}
}
