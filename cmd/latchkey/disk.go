package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"os"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/luks"
)

func newDisk(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "disk", Usage: "print the hash that binds an encrypted disk's header", ArgsUsage: "header IMAGE",
		Description: `The header of a LUKS volume says how it is encrypted, and nothing protects it: a host could
put one there that turns encryption off. A policy's release of kind "luks" names the
header's SHA-256, and the guest opens the disk by a copy that has it.

IMAGE is a raw image or a block device that begins with the volume; for a partition,
--offset says where. A new passphrase or key slot changes the header: print it again.

Examples:

   latchkey disk header disk.img
   latchkey disk header disk.img --offset 1048576 --json`,
		BashComplete: actions("header"),
		Flags: []urfave.Flag{
			&urfave.Int64Flag{Name: "offset", Usage: "the volume begins at this `BYTE` of IMAGE"},
			&urfave.BoolFlag{Name: "json", Usage: "print JSON"},
		},
		Action: func(c *urfave.Context) error {
			args, err := cli.Args(c, "header", "IMAGE")
			if err != nil {
				return err
			}
			if args[0] != "header" {
				return cli.Choice("", "action", args[0], []string{"header"})
			}
			f, err := os.Open(args[1])
			if err != nil {
				return cli.Fail(cli.ExitUsage, err)
			}
			defer f.Close()
			if _, err := f.Seek(c.Int64("offset"), io.SeekStart); err != nil {
				return cli.Fail(cli.ExitUsage, err)
			}
			sum, n, err := luks.Copy(io.Discard, f)
			if err != nil {
				return cli.Fail(cli.ExitUsage, fmt.Errorf("%s: %w", args[1], err),
					"a qcow2 image must be made raw first (qemu-img convert); --offset says where a partition begins")
			}
			text := hex.EncodeToString(sum[:])
			if c.Bool("json") {
				return s.JSON(map[string]any{"schema": "latchkey.disk-header/1", "sha256": text, "bytes": n})
			}
			_, err = fmt.Fprintln(s.Out, text)
			return err
		},
	}
}
