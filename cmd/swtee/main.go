// Command swtee runs QEMU on an emulated secure processor: it is to SEV and TDX what
// swtpm is to a TPM.
package main

import (
	"os"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/swtee/attest"
)

func main() { os.Exit(int(cli.Start("swtee", newApp))) }

const long = `   swtee runs an unmodified QEMU as if this machine had a secure processor or a
   TDX module. The launch takes place step by step as on real hardware: sessions
   are unwrapped, firmware, kernel hashes and registers are measured, secrets are
   authenticated and placed where the guest looks for them. Memory is NOT
   encrypted and the keys are in a file: it protects nothing, and its
   certificates end in a root that owners must name to trust ("swtee root").

   QEMU runs in one of three ways:

      twin    QEMU runs twice with one command line: its own SEV, SEV-ES, SEV-SNP or
              TDX code launches and measures the guest on a fake KVM, and a second QEMU
              boots it under TCG, once that is done, with what the launch submitted. The
              guest can ask for reports and quotes ("swtee guest" in test initrds).
      under   QEMU's own code runs, and swtee answers its system calls. The guest
              executes where KVM can run it; with --fake-kvm it is launched and
              measured, but never executes.
      tcg     QEMU runs under TCG, and swtee answers in the place of its code for SEV.
              For plain guests and MKTME, and where "twin" cannot be had.

   auto chooses "under" where KVM can run a guest; otherwise twin for confidential guests,
   and tcg for others. It prints its choice, and why.

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
		Commands: []*urfave.Command{newRoot(s), newCEK(s), newCollateral(s), newGuest(s)},
		Flags: []urfave.Flag{
			&urfave.StringFlag{
				Name: "accel", EnvVars: []string{"SWTEE_ACCEL"}, Value: accelAuto,
				Usage: "how QEMU runs: auto, twin, under or tcg",
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
					"a status, an errno, reset or delay:300ms; of SNP_GUEST_REQUEST also tcb-behind, masked, vlek, " +
					"of TDX_GET_QUOTE tcb-behind, no-service; may be repeated",
			},
			&urfave.StringFlag{
				Name: "measure-kernel",
				Usage: "act as a host that swaps the kernel: measure `FILE` while QEMU serves its own -kernel " +
					"(twin and tcg)",
			},
			&urfave.StringSliceFlag{
				Name: "measure",
				Usage: "act as a host that lies: launch with `OPTION=VALUE` of QEMU's " +
					"(kernel, initrd, append, bios, smp, …), and run the guest with the one given; " +
					"may be repeated (twin only)",
			},
			&urfave.BoolFlag{
				Name:  "any-kernel",
				Usage: "take kernels that cannot be a guest of SEV-SNP or TDX on silicon (twin only)",
			},
			&urfave.StringFlag{
				Name:  "twin-qemu",
				Usage: "run the guest in this `QEMU`, and launch it with the one of the command line (twin only)",
			},
			&urfave.StringFlag{
				Name: "rtmr-profile",
				Usage: "measure RTMR1 and RTMR2 as firmware of this `PROFILE` does; the newest if left out " +
					"(twin with TDX only)",
			},
			&urfave.UintFlag{
				Name: "report-version", EnvVars: []string{"SWTEE_REPORT_VERSION"}, Value: attest.ReportVersion,
				Usage: "version of SEV-SNP reports: 3, or 5 with mitigation vectors",
			},
			&urfave.UintFlag{
				Name: "quote-version", EnvVars: []string{"SWTEE_QUOTE_VERSION"}, Value: attest.QuoteVersion,
				Usage: "version of TDX quotes: 4, or 5 with what TDX 1.5 adds",
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
