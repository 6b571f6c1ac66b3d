package main

import (
	"fmt"
	"slices"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/bytesize"
	"github.com/vmlatch/vmlatch/launcher"
)

func newDisk(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "disk", Usage: "make a disk image, change its size, or show what it is",
		ArgsUsage: "create FILE SIZE | resize FILE SIZE | info FILE",
		Category:  catHost,
		Description: `"create" makes an empty image, raw or, with the name FILE.qcow2, in qcow2. It never takes the
place of a file. With --backing it is an overlay: it holds what differs from another image,
which must not change any more and is named in the spec (backing =). "resize" makes an image
larger, or with --shrink smaller; its VM must not run. "info" opens nothing that the image
names.

For SIZE write a number and a unit, such as 20GiB.

Examples:

   vmlatch disk create root.qcow2 20GiB
   vmlatch disk create clone.qcow2 --backing debian.qcow2
   vmlatch disk resize root.qcow2 40GiB
   vmlatch disk info root.qcow2 --json`,
		Flags: []urfave.Flag{
			&urfave.StringFlag{
				Name:  "format",
				Usage: "create, resize: `FORMAT`, raw or qcow2 (default: by the name)",
			},
			&urfave.StringFlag{Name: "backing", Usage: "create: an overlay of this image `FILE`"},
			&urfave.BoolFlag{Name: "shrink", Usage: "resize: what is beyond the new size may be lost"},
			jsonFlag(),
		},
		Action: func(c *urfave.Context) error {
			action, args := c.Args().First(), c.Args().Tail()
			switch actions := []string{"create", "resize", "info"}; {
			case action == "create" && (len(args) == 2 || len(args) == 1 && c.IsSet("backing")):
				return createDisk(c, s, args)
			case action == "resize" && len(args) == 2:
				return resizeDisk(c, s, args)
			case action == "info" && len(args) == 1:
				return showDisk(c, s, args[0])
			case action == "":
				return cli.Usagef("usage: vmlatch disk %s", c.Command.ArgsUsage)
			case action == "info":
				return cli.Usagef("disk info needs FILE")
			case action == "create", action == "resize":
				return cli.Usagef("disk %s needs FILE and SIZE", action)
			default:
				return cli.Choice("", "action", action, actions)
			}
		},
	}
}

func createDisk(c *urfave.Context, s *cli.IO, args []string) error {
	d := &launcher.NewDisk{Image: args[0], Format: c.String("format"), Backing: c.String("backing")}
	if err := checkFormat(c); err != nil {
		return err
	}
	if len(args) == 2 {
		var err error
		if d.Size, err = bytesize.Parse(args[1]); err != nil {
			return cli.Usagef("%w", err)
		}
	}
	if err := launcher.MakeDisk(c.Context, d); err != nil {
		return err
	}
	s.Say("made %s", d.Image)
	return nil
}

func checkFormat(c *urfave.Context) error {
	formats := []string{"raw", "qcow2"}
	if f := c.String("format"); f != "" && !slices.Contains(formats, f) {
		return cli.Choice("format", "format", f, formats)
	}
	return nil
}

func resizeDisk(c *urfave.Context, s *cli.IO, args []string) error {
	size, err := bytesize.Parse(args[1])
	if err != nil {
		return cli.Usagef("%w", err)
	}
	if err := checkFormat(c); err != nil {
		return err
	}
	if err := launcher.ResizeDisk(c.Context, args[0], c.String("format"), size, c.Bool("shrink")); err != nil {
		return err
	}
	s.Say("%s has %v; the file system in it is to be made larger in the guest", args[0], size)
	return nil
}

func showDisk(c *urfave.Context, s *cli.IO, image string) error {
	d, err := launcher.LookAtDisk(image)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return s.JSON(d)
	}
	t := s.Table(2)
	row := func(what, format string, args ...any) {
		fmt.Fprintf(t, "%s\t%s\n", what, cli.Escape(fmt.Sprintf(format, args...)))
	}
	row("format", "%s", d.Format)
	if d.Size > 0 {
		row("size", "%v", bytesize.Size(d.Size))
	}
	row("takes", "%v", bytesize.Size(d.Allocated))
	if d.Backing != "" {
		row("backing file", "%s (%s)", d.Backing, d.BackingFormat)
	}
	if d.DataFile != "" {
		row("data file", "%s", d.DataFile)
	}
	if d.Unusable != "" {
		row("cannot be used", "%s", d.Unusable)
	}
	if d.Corrupt {
		row("damaged", "qemu-img check -r all %s", d.Image)
	}
	use := "no"
	if d.InUse {
		use = "yes, by a VM"
	}
	row("in use", "%s", use)
	return t.Flush()
}
