// Command swtee runs QEMU on an emulated secure processor: it is to SEV and TDX what
// swtpm is to a TPM.
package main

import (
	"os"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
)

func main() { os.Exit(int(cli.Start("swtee", newApp))) }

const long = `   swtee runs an unmodified QEMU as if this machine had a secure processor or a
   TDX module. The launch takes place step by step as on real hardware: sessions
   are unwrapped, firmware, kernel hashes and registers are measured, secrets are
   authenticated and placed where the guest looks for them. Memory is NOT
   encrypted and the keys are in a file: it protects nothing, and its
   certificates end in a root that owners must name to trust ("swtee root").

   QEMU runs in one of two ways:

      under   QEMU's own SEV, SEV-ES, SEV-SNP and TDX code runs, and swtee answers
              its system calls. The guest executes where KVM can run it; with
              --fake-kvm it is launched and measured, but never executes.
      tcg     QEMU runs under TCG, and the guest really boots. SEV only.

   auto chooses "under" where KVM can run a guest; otherwise tcg for plain guests and
   SEV, and "under" with a fake KVM for the others. It prints its choice, and why.

   Examples:

      swtee -- qemu-system-x86_64 -machine q35,confidential-guest-support=sev0 \
         -object sev-guest,id=sev0,cbitpos=51,reduced-phys-bits=1,kernel-hashes=on \
         -bios OVMF.amdsev.fd -kernel vmlinuz -append console=ttyS0 \
         -nodefaults -nographic -serial stdio -qmp unix:qmp.sock,server=on,wait=off -S

      swtee --fake-kvm --report pages.json -- qemu-system-x86_64 -accel kvm -cpu EPYC-v4 \
         -machine q35,confidential-guest-support=snp0 -bios OVMF.amdsev.fd \
         -nodefaults -nographic \
         -object sev-snp-guest,id=snp0,cbitpos=51,reduced-phys-bits=1

      swtee --fault LAUNCH_START=RESOURCE_LIMIT -- qemu-system-x86_64 …`

func newApp(s *cli.IO) *cli.App {
	return &cli.App{
		Name: "swtee", Usage: "run QEMU on an emulated secure processor",
		Version: cli.Version(), Long: long, IO: s,
		Commands: []*urfave.Command{newRoot(s), newCEK(s), newCollateral(s)},
		Flags: []urfave.Flag{
			&urfave.StringFlag{
				Name: "accel", EnvVars: []string{"SWTEE_ACCEL"}, Value: accelAuto,
				Usage: "how QEMU runs: auto, under or tcg",
			},
			&urfave.BoolFlag{
				Name: "fake-kvm", EnvVars: []string{"SWTEE_FAKE_KVM"},
				Usage: "answer for /dev/kvm too: needs no KVM and no privileges, the guest never executes",
			},
			platformFlag(),
			&urfave.StringFlag{
				Name: "report", EnvVars: []string{"SWTEE_REPORT"},
				Usage: "write what QEMU submitted, page by page, and the digests to `FILE` (JSON)",
			},
			&urfave.StringSliceFlag{
				Name: "fault", EnvVars: []string{"SWTEE_FAULT"},
				Usage: "fail on purpose, `COMMAND[:N|:N-M|:N+]=WHAT`: " +
					"a status, an errno, reset or delay:300ms; may be repeated",
			},
			&urfave.StringFlag{
				Name: "measure-kernel",
				Usage: "act as a host that swaps the kernel: measure `FILE` while QEMU serves its own -kernel " +
					"(tcg only)",
			},
			&urfave.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "do not print how QEMU is run"},
			&urfave.BoolFlag{
				Name: "verbose", Aliases: []string{"v"},
				Usage: "log each command of the emulated firmware",
			},
		},
		Action: func(c *urfave.Context) error { return run(c, s) },
	}
}

func platformFlag() urfave.Flag {
	return &urfave.StringFlag{
		Name: "platform", EnvVars: []string{"SWTEE_PLATFORM"},
		Usage: "keep the emulated chip's keys in `DIR`",
	}
}
