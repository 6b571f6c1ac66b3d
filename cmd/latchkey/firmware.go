package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/igvm"
	"github.com/vmlatch/vmlatch/firmware/inspect"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
)

func newFirmware(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name:      "firmware",
		Usage:     "show what a firmware image contains, and which parts of it are measured",
		ArgsUsage: "FILE | diff A B",
		Description: `Shows volumes, the GUIDed table, SEV and TDX metadata and the reset vector, and for
each region whether SEV, SEV-ES, SEV-SNP and TDX measure its contents, only its
presence, or nothing. --map draws the same as a picture. --modules lists the files of all
volumes, those that are packed inside too; "tpm" reports whether PCR 0 of a vTPM covers them.

"diff" compares two images, names the modules that differ, and shows which digests
change. For an IGVM file the headers are shown.

Exit code 1: the images of "diff" differ.

Examples:

   latchkey firmware OVMF.amdsev.fd
   latchkey firmware --modules OVMF.amdsev.fd
   latchkey firmware --map map.svg OVMF.amdsev.fd
   latchkey firmware diff old.fd new.fd`,
		Flags: []urfave.Flag{
			&urfave.StringFlag{Name: "map", Usage: "draw the address map into `FILE` (SVG)"},
			&urfave.BoolFlag{Name: "modules", Usage: "list the files of all volumes"},
			&urfave.BoolFlag{Name: "json", Usage: "print JSON"},
		},
		Action: func(c *urfave.Context) error {
			switch args := c.Args().Slice(); {
			case len(args) == 3 && args[0] == "diff":
				return diffFirmware(c, s, args[1], args[2])
			case len(args) == 1 && args[0] != "diff":
				return showFirmware(c, s, args[0])
			}
			return cli.Usagef("usage: latchkey firmware [OPTIONS] FILE, or latchkey firmware diff A B")
		},
	}
}

func readImage(file string) (*ovmf.Image, error) {
	b, err := ovmf.ReadFile(file)
	if err != nil {
		return nil, cli.Fail(cli.ExitUsage, err)
	}
	if igvm.Is(b) {
		return nil, cli.Usagef("%s: IGVM files cannot be compared", file)
	}
	return ovmf.Parse(b)
}

func showFirmware(c *urfave.Context, s *cli.IO, file string) error {
	b, err := ovmf.ReadFile(file)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	if igvm.Is(b) {
		return showIGVM(c, s, b)
	}
	odd, err := looks(file, b)
	if err != nil {
		return err
	}
	if odd != "" {
		s.Say("warning: %s", odd)
	}
	img, err := ovmf.Parse(b)
	if err != nil {
		return err
	}
	r, err := inspect.Image(img)
	if err != nil {
		return err
	}
	if to := c.String("map"); to != "" {
		out, err := s.PrepareOutput(to, 0o644)
		if err != nil {
			return cli.Fail(cli.ExitUsage, err)
		}
		defer out.Discard()
		var svg strings.Builder
		if err := r.Map(&svg, filepath.Base(file)); err != nil {
			return err
		}
		if err := out.Commit([]byte(svg.String())); err != nil {
			return err
		}
	}
	if c.Bool("json") {
		return s.JSON(r)
	}
	if err := printFirmware(s, r); err != nil {
		return err
	}
	if c.Bool("modules") {
		return printModules(s, r)
	}
	if len(r.Modules) > 0 {
		_, err = fmt.Fprintf(s.Out, "%s in its volumes: --modules lists them\n", cli.Count(len(r.Modules), "module"))
	}
	return err
}

func printModules(s *cli.IO, r *inspect.Report) error {
	t := s.Table(2)
	volume := ""
	columns := append(inspect.Technologies(), inspect.TPM)
	for i := range r.Modules {
		m := &r.Modules[i]
		if m.Volume != volume {
			volume = m.Volume
			if err := t.Flush(); err != nil {
				return err
			}
			fmt.Fprintf(s.Out, "\nin %s\n", cli.Escape(volume))
			t = s.Table(2)
			fmt.Fprintf(t, "  MODULE\tTYPE\tGUID\tSIZE\t%s\tSECTIONS\n", strings.ToUpper(strings.Join(columns, "\t")))
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\t%#x", cli.Escape(m.Label()), m.Type, m.GUID, m.Size)
		for _, x := range columns {
			fmt.Fprintf(t, "\t%s", m.Cover[x])
		}
		fmt.Fprintf(t, "\t%s\n", cli.Escape(strings.Join(m.Sections, ", ")))
	}
	return t.Flush()
}

func printFirmware(s *cli.IO, r *inspect.Report) error {
	w := s.Out
	fmt.Fprintf(w, "size          %d bytes, loaded at %#x\nsha256        %s\nreset vector  %s\n",
		r.Size, r.Base, r.SHA256, r.ResetVector)
	for _, name := range []string{"sev-snp-pages", "tdx"} {
		if d := r.Digests[name]; d != "" {
			fmt.Fprintf(w, "%-13s %s\n", map[string]string{"sev-snp-pages": "SNP pages", "tdx": "MRTD"}[name], d)
		}
	}
	if r.Version != "" {
		fmt.Fprintf(w, "version       %s\n", cli.Escape(r.Version))
	}
	if b := r.SecureBoot; b != nil {
		word := "no code for it"
		switch {
		case b.On:
			word = "on: a platform key is enrolled"
		case b.Code:
			word = "off: no platform key in this image"
		}
		fmt.Fprintf(w, "Secure Boot   %s\n", word)
	}
	for _, v := range r.Variables {
		fmt.Fprintf(w, "variable      %s, %s\n", cli.Escape(v.Name), cli.Count(v.Size, "byte"))
		for _, k := range v.Keys {
			fmt.Fprintf(w, "              %s\n", cli.Escape(k))
		}
	}
	fmt.Fprintln(w, "\nGUIDed table")
	for _, e := range r.Entries {
		fmt.Fprintf(w, "  %-38s %s\n", e.Name, e.Text)
	}
	fmt.Fprintf(w, "\n%-34s %-12s %-10s", "region", "address", "size")
	for _, t := range inspect.Technologies() {
		fmt.Fprintf(w, " %-9s", t)
	}
	fmt.Fprintln(w)
	for _, region := range r.Regions {
		gpa, size := fmt.Sprintf("%#x", region.GPA), fmt.Sprintf("%#x", region.Size)
		fmt.Fprintf(w, "%-34s %-12s %-10s", region.What, gpa, size)
		for _, t := range inspect.Technologies() {
			fmt.Fprintf(w, " %-9s", region.Cover[t])
		}
		fmt.Fprintln(w)
	}
	for _, n := range r.Notes {
		if _, err := fmt.Fprintf(w, "\nnote: %s", n); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(w)
	return err
}

func showIGVM(c *urfave.Context, s *cli.IO, b []byte) error {
	f, err := igvm.Parse(b)
	if err != nil {
		return err
	}
	counts := map[string]int{}
	for _, h := range f.Headers {
		counts[h.Type.String()]++
	}
	digest := ""
	d, err := f.SNPDigest(igvm.Options{})
	switch {
	case err == nil:
		digest = d.String()
	case !errors.Is(err, igvm.ErrPlatform):
		return err
	}
	if c.Bool("json") {
		return s.JSON(map[string]any{
			"schema":     "latchkey.igvm/1",
			"size":       len(b),
			"headers":    counts,
			"snp-digest": digest,
		})
	}
	fmt.Fprintf(s.Out, "IGVM file of %d bytes\n", len(b))
	for _, h := range f.Headers {
		if n := counts[h.Type.String()]; n > 0 {
			fmt.Fprintf(s.Out, "  %-20v %d\n", h.Type, n)
			counts[h.Type.String()] = 0
		}
	}
	if digest == "" {
		digest = "none: " + err.Error()
	}
	_, err = fmt.Fprintf(s.Out, "SNP digest  %s\n", digest)
	return err
}

func diffFirmware(c *urfave.Context, s *cli.IO, first, second string) error {
	a, err := readImage(first)
	if err != nil {
		return err
	}
	b, err := readImage(second)
	if err != nil {
		return err
	}
	d, err := inspect.Diff(a, b)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		err = s.JSON(d)
	} else {
		err = printDifference(s, d)
	}
	if err == nil && !d.Same {
		err = cli.Fail(cli.ExitFailure, errors.New("the images differ"))
	}
	return err
}

func printDifference(s *cli.IO, d *inspect.Difference) error {
	if d.Same {
		_, err := fmt.Fprintln(s.Out, "the images are identical: no digest changes")
		return err
	}
	for _, change := range d.Changes {
		fmt.Fprintln(s.Out, change)
	}
	for _, t := range append(inspect.Technologies(), inspect.TPM) {
		say := "stays"
		if d.Digests[t] {
			say = "changes"
		}
		name := strings.Replace(t, inspect.TPM, "PCR 0", 1)
		if _, err := fmt.Fprintf(s.Out, "digest of %-8s %s\n", name, say); err != nil {
			return err
		}
	}
	return nil
}
