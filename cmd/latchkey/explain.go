package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/explain"
	"github.com/vmlatch/vmlatch/firmware/firstboot"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/exchange"
	"github.com/vmlatch/vmlatch/firmware/sev/launch"
)

func newExplain(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "explain", Usage: "explain why a digest or measurement does not match",
		Description: `Give what you predict as for "latchkey measure", and what was seen: a digest, the
report or quote that it stands in, or for SEV and SEV-ES a measurement with its owner
file. Common differences are tried, alone and two at a time: kernel, initrd or command
line missing, swapped, or with different white space; kernel-hashes off; a different
number of CPUs (up to 512), CPU model or sev_features; INIT or INIT2; a different VMM; a
different firmware of this machine; under a measurement, policy and firmware version and
build.

Exit code 0: the smallest change that explains what was seen is named.
Exit code 4: no combination that was tried explains it.

Examples:

   latchkey explain --technology sev-snp --firmware OVMF.amdsev.fd \
      --cpu EPYC-Milan --vcpus 4 --digest 54a8c0dd…
   latchkey explain --evidence report.bin --firmware OVMF.amdsev.fd --cpu EPYC-Milan
   latchkey explain --owner guest.owner --measurement measurement.json \
      --firmware OVMF.amdsev.fd --kernel vmlinuz --cmdline quiet
   latchkey explain --technology sev --firmware OVMF.amdsev.fd --kernel vmlinuz \
      --other vmlinuz-old --digest …`,
		Flags: predictFlags(
			&urfave.StringFlag{Name: "digest", Usage: "the digest that was seen, in `HEX`"},
			&urfave.StringFlag{
				Name:  "evidence",
				Usage: "an SEV-SNP report or a TDX quote `FILE`, for its technology and digest; it is not verified",
			},
			&urfave.StringFlag{
				Name:  "measurement",
				Usage: "the host's `FILE` (vmlatch measure), - for standard input",
			},
			passphraseFlag(), deviceFlag(),
			&urfave.StringFlag{Name: "owner", Usage: "your owner `FILE` of the session, for --measurement"},
			&urfave.StringSliceFlag{
				Name:  "other",
				Usage: "a `FILE` that may have been kernel or initrd instead; may be repeated",
			},
			&urfave.StringSliceFlag{
				Name:  "other-firmware",
				Usage: "a `FILE` that may have been the firmware instead; may be repeated",
			},
			&urfave.BoolFlag{Name: "json", Usage: "print JSON"},
		),
		Action: func(c *urfave.Context) error {
			if _, err := cli.Args(c); err != nil {
				return err
			}
			seen := 0
			for _, name := range []string{"digest", "measurement", "evidence"} {
				if c.IsSet(name) {
					seen++
				}
			}
			if seen != 1 {
				err := errors.New("give what was seen: --digest, --evidence, or --measurement with --owner")
				return cli.Fail(cli.ExitUsage, err, cli.Examples(c))
			}
			r, err := runExplain(c, s)
			if err != nil {
				return err
			}
			return reportExplanation(c, s, r)
		},
	}
}

func runExplain(c *urfave.Context, s *cli.IO) (*explain.Result, error) {
	if c.IsSet("measurement") {
		return explainMeasurement(c, s)
	}
	technology, digest := c.String("technology"), c.String("digest")
	if file := c.String("evidence"); c.IsSet("evidence") {
		if file == "" {
			return nil, cli.Usagef("--evidence: is empty")
		}
		e, err := evidenceOf(s, file)
		if err != nil {
			return nil, err
		}
		if c.IsSet("technology") && technology != e.Technology {
			return nil, cli.Usagef("--evidence %s: it is of %s, not of %s", file, e.Technology, technology)
		}
		technology, digest = e.Technology, hex.EncodeToString(e.Digest())
	}
	in, err := readInputs(c, technology)
	if err != nil {
		return nil, err
	}
	seen, err := hex.DecodeString(strings.TrimSpace(digest))
	if want := map[string]int{"sha256": 32, "sha384": 48}[in.algorithm()]; err != nil || len(seen) != want {
		return nil, cli.Usagef("--digest: must be %d bytes in hex for %s", want, in.Technology)
	}
	firmware := filepath.Base(c.String("firmware"))
	switch {
	case in.igvm != nil:
		return explain.IGVM(in.igvm, seen), nil
	case in.tdx:
		images, err := otherImages(c)
		if err != nil {
			return nil, err
		}
		return explain.MRTD(explain.Image{Name: firmware, Image: in.image}, in.order, images, seen), nil
	}
	q, err := newQuery(c, in, nil)
	if err != nil {
		return nil, err
	}
	q.Observed = explain.Digest(seen)
	return explain.Search(q), nil
}

func explainMeasurement(c *urfave.Context, s *cli.IO) (*explain.Result, error) {
	if c.String("owner") == "" {
		return nil, cli.Usagef("--owner is needed with --measurement: the measurement is a MAC under its key")
	}
	m, err := readMeasurement(s, c.String("measurement"))
	if err != nil {
		return nil, err
	}
	seen, err := sev.ParseMeasurement(m.Measurement)
	if err != nil {
		return nil, err
	}
	st := openStore(c, s)
	defer st.wipe()
	o, err := st.read()
	if err != nil {
		return nil, err
	}
	defer o.wipe()
	in, err := readInputs(c, string(o.technology()))
	if err != nil {
		return nil, err
	}
	q, err := newQuery(c, in, m.Claims)
	if err != nil {
		return nil, err
	}
	keys := o.keys()
	defer keys.Wipe()
	q.Observed = &explain.Measurement{Keys: &keys, Seen: seen, Build: m.Firmware, Policy: o.Policy}
	return explain.Search(q), nil
}

// newQuery collects what may have been loaded instead: files that the user names, what
// the host claims, and the firmware in this machine's descriptors.
func newQuery(c *urfave.Context, in *inputs, claims *exchange.Claims) (*explain.Query, error) {
	q := &explain.Query{Inputs: in.Inputs, Firmware: filepath.Base(c.String("firmware"))}
	images, err := otherImages(c)
	if err != nil {
		return nil, err
	}
	for _, img := range images {
		if l, err := launch.LayoutOf(img.Image); err == nil {
			q.Firmwares = append(q.Firmwares, explain.Firmware{Name: img.Name, Layout: l})
		}
	}
	if claims != nil {
		q.Claimed = claims.Kernel
	}
	k := &explain.Kernel{HasInitrd: c.String("initrd") != "", Cmdline: c.String("cmdline")}
	for _, file := range c.StringSlice("other") {
		sum, err := sev.HashFile(file)
		if err != nil {
			return nil, cli.Fail(cli.ExitUsage, err)
		}
		h := explain.NamedHash{Name: file, Hash: sum}
		k.OtherKernels, k.OtherInitrds = append(k.OtherKernels, h), append(k.OtherInitrds, h)
	}
	if in.Kernel != nil && c.String("initrd") != "" {
		if k.OtherConfigs, err = otherConfigs(in.config, c.String("initrd"), c.StringSlice("other")); err != nil {
			return nil, cli.Fail(cli.ExitUsage, err)
		}
	}
	if q.Claimed != nil && in.Kernel != nil {
		claimed := func(sum [32]byte) []explain.NamedHash {
			return []explain.NamedHash{{Name: fmt.Sprintf("what the host names, sha256 %x", sum), Hash: sum}}
		}
		k.OtherKernels = append(k.OtherKernels, claimed(q.Claimed.Kernel)...)
		k.OtherInitrds = append(k.OtherInitrds, claimed(q.Claimed.Initrd)...)
		k.OtherCmdlines = claimed(q.Claimed.Cmdline)
	}
	q.Kernel = k
	return q, nil
}

// otherConfigs are the owner's initrd with another configuration of the first boot before it: a
// part of the owner's, or one with another file.
func otherConfigs(config firstboot.Content, initrd string, files []string) (list []explain.NamedHash, err error) {
	others := map[string][]byte{}
	for _, file := range files { // a kernel is none
		if b, err := regular.Read(file, firstboot.MaxFile); err == nil {
			others[file] = b
		}
	}
	return hashConfigs(config.Others(initrd, others))
}

// hashConfigs hashes initrds with other configurations.
func hashConfigs(others []firstboot.Other) (list []explain.NamedHash, err error) {
	for _, o := range others {
		sum, err := sev.HashInitrd(o.Initrd)
		if err != nil {
			return nil, err
		}
		list = append(list, explain.NamedHash{Name: o.Say, Hash: sum})
	}
	return list, nil
}

// otherImages are the firmware images that the user names and those in this machine's
// descriptors, without the predicted one. Images in descriptors that cannot be read are skipped.
func otherImages(c *urfave.Context) ([]explain.Image, error) {
	var images []explain.Image
	own, _ := filepath.EvalSymlinks(c.String("firmware"))
	seen := map[string]bool{own: true}
	add := func(file string) error {
		real, err := filepath.EvalSymlinks(file)
		if err != nil || seen[real] {
			return err
		}
		seen[real] = true
		img, err := readImage(real)
		if err == nil {
			images = append(images, explain.Image{Name: file, Image: img})
		}
		return err
	}
	for _, file := range c.StringSlice("other-firmware") {
		if err := add(file); err != nil {
			return nil, cli.Fail(cli.ExitUsage, fmt.Errorf("--other-firmware: %w", err))
		}
	}
	found, _ := ovmf.FindDescriptors(ovmf.DescriptorDirs()...) // those that can be read
	for _, d := range found {
		_ = add(d.Image)
	}
	return images, nil
}

func reportExplanation(c *urfave.Context, s *cli.IO, r *explain.Result) error {
	if c.Bool("json") {
		out := struct {
			Schema string `json:"schema"`
			*explain.Result
			Sentence string `json:"sentence,omitempty"`
		}{"latchkey.explanation/1", r, r.Sentence()}
		if err := s.JSON(out); err != nil {
			return err
		}
	}
	if !r.Found {
		err := fmt.Errorf("%w: none of %d combinations gives what was seen", errUnexplained, r.Tried)
		if c.Bool("json") {
			return &cli.Error{Code: cli.ExitRefused, Err: err, Quiet: true}
		}
		return err
	}
	if c.Bool("json") {
		return nil
	}
	_, err := fmt.Fprintf(s.Out, "%s (%d combinations tried)\n", r.Sentence(), r.Tried)
	return err
}
