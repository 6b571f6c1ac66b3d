package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
	"unicode/utf8"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/firmware/swtee/attest"
)

func openPlatform(c *urfave.Context) (*swtee.Platform, error) {
	dir := c.String("platform")
	if dir == "" {
		var err error
		if dir, err = swtee.DefaultDir(); err != nil {
			return nil, cli.WithHint(err, "name a directory with --platform")
		}
	}
	p, err := swtee.OpenPlatform(dir)
	return p, withPlatformHint(err)
}

// withPlatformHint says what to do about a damaged file.
func withPlatformHint(err error) error {
	if file := swtee.DamagedFile(err); file != "" {
		return cli.WithHint(err,
			fmt.Sprintf("remove %s to have a new platform made; this ends what relies on the old one", file))
	}
	return err
}

func newRoot(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "root", Usage: "print the test roots that owners must name to trust this platform",
		Description: `They are the authorities over the platform's SEV keys, over the keys that sign reports
of SEV-SNP, and over those that sign quotes of TDX. The keys are made when they are
first needed, which takes some seconds.

Examples:

   swtee root > test-root.pem
   latchkey session --platform platform.json --cek cek.cert --trust-root test-root.pem --out .
   latchkey report verify report.bin --genuine --bundle bundle.json --trust-root test-root.pem`,
		Flags:  []urfave.Flag{platformFlag()},
		Action: prints(s, (*swtee.Platform).AllRootsPEM),
	}
}

func newCEK(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "cek", Usage: "print the chip's certificate as its key server signed it",
		Description: `A platform exports this certificate without a signature. For real chips AMD's key
server gives the signed one; this command takes the server's place.

Example:

   swtee cek > cek.cert
   latchkey session --platform platform.json --cek cek.cert --trust-root test-root.pem --out .`,
		Flags:  []urfave.Flag{platformFlag()},
		Action: prints(s, func(p *swtee.Platform) ([]byte, error) { return p.SignedCEK(), nil }),
	}
}

// prints is a command that shows a part of the platform.
func prints(s *cli.IO, part func(*swtee.Platform) ([]byte, error)) urfave.ActionFunc {
	return func(c *urfave.Context) error {
		if _, err := cli.Args(c); err != nil {
			return err
		}
		p, err := openPlatform(c)
		if err != nil {
			return err
		}
		b, err := part(p)
		if err != nil {
			return withPlatformHint(err)
		}
		if s.OutIsTerminal() && !utf8.Valid(b) {
			return cli.WithHint(cli.Usagef("the certificate is binary, and standard output a terminal"),
				"redirect it: swtee cek > cek.cert")
		}
		_, err = s.Out.Write(b)
		return err
	}
}

func newCollateral(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "collateral", Usage: "write what this platform's evidence is judged by, in AMD's and Intel's place",
		Description: `For real platforms AMD's and Intel's servers have the certificates of the keys that sign
reports, lists of what is revoked, and the states of platforms. This command takes their
place. As theirs, lists and states expire.

Examples:

   swtee collateral --out parts
   swtee root > test-root.pem
   latchkey bundle add bundle.json parts/* --trust-root test-root.pem

   swtee collateral --out parts --as-of 2026-01-01 --days 10    # expired
   swtee collateral --out parts --revoked                       # all keys are revoked`,
		Flags: []urfave.Flag{
			&urfave.StringFlag{Name: "out", Usage: "write the files into `DIR`, which is made if need be"},
			cli.TimeFlag("as-of", "issue them at this `TIME` (2026-11-27, or RFC 3339), not now"),
			&urfave.IntFlag{
				Name:  "days",
				Value: int(attest.DefaultValid / day),
				Usage: "for how many days they are valid",
			},
			&urfave.BoolFlag{Name: "revoked", Usage: "revoke the platform's keys"},
			platformFlag(),
		},
		Action: func(c *urfave.Context) error { return collateral(c, s) },
	}
}

const (
	day     = 24 * time.Hour
	maxDays = 3660
)

func collateral(c *urfave.Context, s *cli.IO) error {
	if _, err := cli.Args(c); err != nil {
		return err
	}
	dir, days := c.String("out"), c.Int("days")
	switch {
	case dir == "":
		return cli.WithHint(cli.Usagef("--out is missing: where are the files to go?"), "swtee collateral --out parts")
	case days < 1 || days > maxDays:
		return cli.Usagef("--days %d: must be from 1 to %d", days, maxDays)
	}
	at, err := cli.TimeOf(c, "as-of")
	if err != nil {
		return err
	}
	p, err := openPlatform(c)
	if err != nil {
		return err
	}
	files, err := p.Collateral(attest.Terms{AsOf: at, Valid: time.Duration(days) * day, Revoked: c.Bool("revoked")})
	if err != nil {
		return withPlatformHint(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return cli.Fail(cli.ExitUsage, fmt.Errorf("--out: %w", err))
	}
	for _, f := range files {
		if err := write(s, filepath.Join(dir, f.Name), f.Data); err != nil {
			return fmt.Errorf("--out: %w", err)
		}
		fmt.Fprintf(s.Out, "%s: %s\n", filepath.Join(dir, f.Name), f.About)
	}
	return nil
}

func write(s *cli.IO, name string, b []byte) error {
	out, err := s.PrepareOutput(name, 0o644)
	if err != nil {
		return err
	}
	defer out.Discard()
	return out.Commit(b)
}
