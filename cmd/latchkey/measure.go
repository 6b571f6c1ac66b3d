package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/sev"
)

// inputFlags name what a launch digest covers.
func inputFlags(more ...urfave.Flag) []urfave.Flag {
	return append(more,
		&urfave.StringFlag{Name: "firmware", Usage: "firmware image `FILE`"},
		&urfave.StringFlag{Name: "kernel", Usage: "kernel `FILE`, if the host measures it (kernel-hashes)"},
		&urfave.StringFlag{Name: "initrd", Usage: "initrd `FILE`"},
		&urfave.StringFlag{Name: "cmdline", Usage: "kernel command `LINE`, exactly"},
	)
}

// inputs are the owner's own copies of what the guest shall be.
type inputs struct {
	image  *ovmf.Image
	area   sev.HashArea
	kernel *sev.KernelHashes
}

func readInputs(c *urfave.Context) (*inputs, error) {
	if c.String("firmware") == "" {
		return nil, cli.Usagef("--firmware is needed: the digest covers it")
	}
	if c.String("kernel") == "" && (c.IsSet("initrd") || c.IsSet("cmdline")) {
		return nil, cli.Usagef("--initrd and --cmdline are measured only with a --kernel")
	}
	b, err := os.ReadFile(c.String("firmware"))
	if err != nil {
		return nil, cli.Fail(cli.ExitUsage, err)
	}
	in := &inputs{}
	if in.image, err = ovmf.Parse(b); err != nil {
		return nil, err
	}
	area, _, err := in.image.HashArea()
	if err != nil {
		return nil, err
	}
	in.area = sev.HashArea(area)
	if k := c.String("kernel"); k != "" {
		h, err := sev.HashKernelFiles(k, c.String("initrd"), c.String("cmdline"))
		if err != nil {
			return nil, cli.Fail(cli.ExitUsage, err)
		}
		in.kernel = &h
	}
	return in, nil
}

func (in *inputs) digest() ([32]byte, error) { return in.digestWith(in.kernel) }

func (in *inputs) digestWith(kernel *sev.KernelHashes) ([32]byte, error) {
	return sev.LaunchDigest(sev.LaunchInputs{Firmware: in.image.Bytes, Kernel: kernel, HashArea: in.area})
}

func newMeasure(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "measure", Usage: "predict a launch digest",
		Description: `The digest is printed in hex on the first line.

Example:

   latchkey measure --technology sev --firmware OVMF.amdsev.fd --kernel vmlinuz --initrd initrd.img --cmdline console=ttyS0`,
		Flags: inputFlags(
			&urfave.StringFlag{Name: "technology", Value: "sev", Usage: "`TECHNOLOGY` of the launch: sev"},
			&urfave.BoolFlag{Name: "json", Usage: "print JSON"}),
		Action: func(c *urfave.Context) error {
			if _, err := cli.Args(c); err != nil {
				return err
			}
			if t := c.String("technology"); t != "sev" {
				return cli.Usagef("--technology %s: this version predicts sev", t)
			}
			in, err := readInputs(c)
			if err != nil {
				return err
			}
			d, err := in.digest()
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return s.JSON(map[string]any{"schema": "latchkey.digest/1", "technology": "sev", "digest": hex.EncodeToString(d[:]), "algorithm": "sha256"})
			}
			_, err = fmt.Fprintf(s.Out, "%x\n", d)
			return err
		},
	}
}

var errMismatch = errors.New("the measurement is NOT of what you named")
