package check

import (
	"strings"

	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

func hasTPM(s *tee.Subject) bool { return s.TPM.On() }

// tpmChecks are about the guest's TPM, which is the host's.
func tpmChecks() []tee.Check {
	return []tee.Check{
		{
			ID:       "vtpm-evidence",
			Severity: tee.Refuse,
			Key:      "tpm",
			When:     confidential,
			Cause: "the TPM is a program of the host's, which can read and change what it holds:" +
				" what a confidential guest seals to it, it gives to its host",
			Fix:    `leave [tpm] out; or write trust = "host" in it, if the guest keeps no secret there`,
			Source: "TCG, Virtualized Trusted Platform Architecture Specification",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				if hasTPM(s) && s.TPM.Trust == plan.TrustHost {
					return tee.OK, ""
				}
				if hasTPM(s) {
					return tee.Failed, ""
				}
				return tee.Without(`tpm-.*`)(s)
			},
		},
		{
			ID:       "tpm-device-twice",
			Severity: tee.Refuse,
			OfSpec:   true,
			Key:      "device",
			When:     hasTPM,
			Cause:    "a machine has one TPM",
			Fix:      "leave the device out: [tpm] makes one",
			Source:   "QEMU, hw/tpm",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				for _, d := range s.Devices {
					if driver := plan.Texts(d)["driver"]; strings.HasPrefix(driver, "tpm-") {
						return tee.Failed, driver
					}
				}
				return tee.OK, ""
			},
		},
		{
			ID:       "tpm-ephemeral-disk",
			Severity: tee.Warn,
			OfSpec:   true,
			Key:      "tpm.state",
			When:     func(s *tee.Subject) bool { return hasTPM(s) && s.TPM.State == plan.TPMEphemeral },
			Cause:    "the TPM is gone with the VM: a disk whose key is sealed to it cannot be opened again",
			Fix:      `state = "persistent", or disks that need no such key`,
			Source:   "swtpm(8), --tpmstate",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				for _, d := range s.Disks {
					if !d.ReadOnly {
						return tee.Failed, d.Image
					}
				}
				return tee.OK, ""
			},
		},
		{
			ID:       fault.TPMProgram,
			Severity: tee.Refuse,
			Stage:    tee.HostStage,
			When:     hasTPM,
			Cause:    "nothing here emulates a TPM",
			Fix:      fault.FixSwtpm,
			Source:   "swtpm(8)",
			Look: func(s *tee.Subject) (tee.Verdict, string) { // a missing one is an error of the facts
				return tee.Verify(s.Facts.TPM != nil, "")
			},
		},
		{
			ID:       fault.TPMState,
			Severity: tee.Refuse,
			Stage:    tee.HostStage,
			OfSpec:   true,
			Key:      "tpm.key",
			When: func(s *tee.Subject) bool {
				return hasTPM(s) && s.Facts.TPM != nil && s.Facts.TPM.Encrypted != nil
			},
			Cause:  "key and state of the TPM do not go together",
			Fix:    "name the key that the state was made with; or leave key out, if it was made without one",
			Source: "swtpm, src/swtpm/swtpm_nvstore.c, TPM_NV header",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				switch encrypted := *s.Facts.TPM.Encrypted; {
				case encrypted && s.TPM.Key == "":
					return tee.Failed, "its state is encrypted, and the spec names no key"
				case !encrypted && s.TPM.Key != "":
					return tee.Failed, "its state is not encrypted, and the spec names a key"
				}
				return tee.OK, ""
			},
		},
		{
			ID:       "tpm-firmware",
			Severity: tee.Warn,
			Stage:    tee.HostStage,
			OfSpec:   true,
			Key:      "firmware",
			When:     func(s *tee.Subject) bool { return hasTPM(s) && s.Facts.TPM != nil },
			Cause:    "the guest's firmware measures nothing: its PCRs say nothing of what was booted",
			Fix:      `use a build of OVMF with TPM modules: type = "uefi" in [firmware]`,
			Source:   "edk2, OvmfPkg, TPM2_ENABLE",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				return tee.Verify(s.Facts.TPM.Firmware == "", "%s", s.Facts.TPM.Firmware)
			},
		},
	}
}
