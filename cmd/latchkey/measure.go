package main

import (
	"encoding/hex"
	"fmt"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
)

func newMeasure(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "measure", Usage: "predict a launch digest",
		Description: `The digest is printed in hex on the first line. It is what the platform
measures when it runs exactly the files that you name. The defaults are what QEMU
does; --vmm and --vmsa choose other virtual machine monitors and older kernels.

Examples:

   latchkey measure --technology sev --firmware OVMF.amdsev.fd \
      --kernel vmlinuz --initrd initrd.img --cmdline console=ttyS0
   latchkey measure --technology sev-es --firmware OVMF.amdsev.fd \
      --vcpus 2 --cpu EPYC-Milan --vmsa legacy
   latchkey measure --technology sev-snp --firmware OVMF.amdsev.fd --vcpus 4 --cpu EPYC-Genoa
   latchkey measure --technology sev-snp --firmware guest.igvm
   latchkey measure --technology tdx --firmware OVMF.inteltdx.ms.fd`,
		Flags: predictFlags(&urfave.BoolFlag{Name: "json", Usage: "print JSON"}),
		Action: func(c *urfave.Context) error {
			if _, err := cli.Args(c); err != nil {
				return err
			}
			in, err := readInputs(c, c.String("technology"))
			if err != nil {
				return err
			}
			d, err := in.digest()
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return s.JSON(map[string]any{
					"schema":     "latchkey.digest/1",
					"technology": in.Technology,
					"digest":     hex.EncodeToString(d),
					"algorithm":  in.algorithm(),
				})
			}
			_, err = fmt.Fprintf(s.Out, "%x\n", d)
			return err
		},
	}
}
