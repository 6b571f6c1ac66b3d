// Command swtee runs QEMU on an emulated secure processor: it is to SEV what
// swtpm is to a TPM.
package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/swtee"
)

func main() { os.Exit(int(newApp(cli.System("swtee")).Main(os.Args))) }

const long = `   swtee runs an unmodified QEMU as if this machine had a secure processor. The
   launch takes place step by step as on real hardware: sessions are unwrapped,
   the firmware and the kernel hashes are measured, secrets are authenticated
   and placed where the guest looks for them. Memory is NOT encrypted and the
   keys lie in a file: it protects nothing, and its certificates end in a root
   that owners must name before they trust it ("swtee root").

   Example:

      swtee -- qemu-system-x86_64 -machine q35,confidential-guest-support=sev0 \
         -object sev-guest,id=sev0,cbitpos=51,reduced-phys-bits=1,kernel-hashes=on \
         -bios OVMF.amdsev.fd -kernel vmlinuz -append console=ttyS0 \
         -nodefaults -nographic -serial stdio -qmp unix:qmp.sock,server=on,wait=off -S`

func newApp(s *cli.IO) *cli.App {
	return &cli.App{
		Name: "swtee", Usage: "run QEMU on an emulated secure processor", Version: cli.Version(), Long: long, IO: s,
		Commands: []*urfave.Command{newRoot(s)},
		Flags: []urfave.Flag{
			&urfave.StringFlag{Name: "accel", Value: "auto", Usage: "how QEMU runs: auto or tcg (both mean tcg in this version)"},
			platformFlag(),
			&urfave.StringFlag{Name: "measure-kernel", Usage: "act as a host that swaps the kernel: measure `FILE` while QEMU serves its own -kernel"},
			&urfave.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "log each command of the emulated firmware"},
		},
		Action: func(c *urfave.Context) error { return run(c, s) },
	}
}

func platformFlag() urfave.Flag {
	return &urfave.StringFlag{Name: "platform", EnvVars: []string{"SWTEE_PLATFORM"}, Usage: "keep the emulated chip's keys in `DIR`"}
}

func openPlatform(c *urfave.Context) (*swtee.Platform, error) {
	dir := c.String("platform")
	if dir == "" {
		var err error
		if dir, err = swtee.DefaultDir(); err != nil {
			return nil, cli.WithHint(err, "name a directory with --platform")
		}
	}
	p, err := swtee.OpenPlatform(dir)
	if err != nil {
		return nil, cli.WithHint(err, fmt.Sprintf("remove %s to have a new platform made; sessions for the old one end with it", filepath.Join(dir, "platform.json")))
	}
	return p, nil
}

func run(c *urfave.Context, s *cli.IO) error {
	if c.NArg() == 0 {
		return cli.WithHint(cli.Usagef("no QEMU command line given"), `usage: swtee [OPTIONS] -- qemu-system-x86_64 …`, `"swtee --help" shows an example`)
	}
	if accel := c.String("accel"); accel != "auto" && accel != "tcg" {
		return cli.Usagef("--accel %s: must be auto or tcg", accel)
	}
	p, err := openPlatform(c)
	if err != nil {
		return err
	}
	level := slog.LevelWarn
	if c.Bool("verbose") {
		level = slog.LevelInfo
	}
	code, err := swtee.RunTCG(c.Context, swtee.TCGOptions{
		Argv: c.Args().Slice(), Platform: p, MeasureKernel: c.String("measure-kernel"),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})).With("emulated", true),
	})
	if err != nil {
		return cli.Fail(cli.ExitCode(code), err)
	}
	if code != 0 {
		return &cli.Error{Code: cli.ExitCode(code), Err: fmt.Errorf("QEMU exited with code %d", code), Quiet: true}
	}
	return nil
}

func newRoot(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "root", Usage: "print the test root certificate that owners must name to trust this platform",
		Description: "Example:\n\n   swtee root > test-root.pem\n   latchkey session --platform platform.json --trust-root test-root.pem --out .",
		Flags:       []urfave.Flag{platformFlag()},
		Action: func(c *urfave.Context) error {
			if _, err := cli.Args(c); err != nil {
				return err
			}
			p, err := openPlatform(c)
			if err != nil {
				return err
			}
			_, err = s.Out.Write(p.RootPEM())
			return err
		},
	}
}
