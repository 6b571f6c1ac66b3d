package main

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/exchange"
	"github.com/vmlatch/vmlatch/firmware/sev/session"
)

func newSession(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "session", Usage: "verify a platform and make a session for one launch on it",
		Description: `Writes NAME.godh and NAME.session, which the host needs for the launch, and
NAME.owner (mode 0600), which holds the keys and stays with you. A session is
for one launch: after one secret it is used up.

A policy is a number, or words joined by commas:

   ` + strings.Join(sev.PolicyNames(), ", ") + `, api=MAJOR.MINOR

Examples:

   latchkey session --platform platform.json --policy no-debug,no-key-sharing --out .
   latchkey session --platform platform.json --trust-root test-root.pem --out .`,
		Flags: []urfave.Flag{
			&urfave.StringFlag{Name: "platform", Usage: "the host's `FILE` (vmlatch platform)"},
			&urfave.StringFlag{
				Name: "policy", Value: "no-debug,no-key-sharing",
				Usage: "guest `POLICY`, the same as the host's",
			},
			&urfave.StringFlag{Name: "out", Usage: "write to `DIR`"},
			&urfave.StringFlag{Name: "name", Value: "guest", Usage: "name of the files"},
			&urfave.StringFlag{Name: "trust-root", Usage: "also trust the test root in `FILE`: for emulated platforms"},
			&urfave.BoolFlag{
				Name:  "allow-debug",
				Usage: "accept a policy under which the host can read the guest's memory",
			},
			&urfave.BoolFlag{Name: "force", Usage: "replace files that exist"},
		},
		Action: func(c *urfave.Context) error {
			if _, err := cli.Args(c); err != nil {
				return err
			}
			if err := cli.Need(c, "platform", "out"); err != nil {
				return err
			}
			return runSession(c, s)
		},
	}
}

func runSession(c *urfave.Context, s *cli.IO) error {
	policy, err := sev.ParsePolicy(c.String("policy"))
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	if policy&sev.PolicyNoDebug == 0 && !c.Bool("allow-debug") {
		return cli.Fail(cli.ExitUsage,
			fmt.Errorf("policy %v lacks no-debug: the host could read the guest's memory, and so your secret", policy),
			"write no-debug as well, such as --policy no-debug,api=1.55",
			"--allow-debug makes such a session on purpose")
	}
	name := c.String("name")
	if err := exchange.CheckName(name); err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	b, err := s.ReadInput(c.String("platform"), exchange.MaxFile)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	platform, err := exchange.ParsePlatform(b)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err, `it is made by "vmlatch platform"`)
	}
	chain, err := sev.ParseChain(platform.PDH, platform.CertChain)
	if err != nil {
		return err
	}
	root, emulated, err := verifyChain(chain, c.String("trust-root"))
	if err != nil {
		return err
	}
	made, err := session.New(rand.Reader, chain.PDH, policy)
	if err != nil {
		return err
	}
	defer made.Keys.Wipe()
	o := &ownerFile{
		Schema: ownerSchema, Emulated: emulated, Root: root.Product, RootHash: root.Fingerprint(),
		CPU0ID: platform.CPU0ID, Policy: policy, Created: time.Now().UTC(),
		TEK: bytes.Clone(made.Keys.TEK[:]), TIK: bytes.Clone(made.Keys.TIK[:]),
	}
	defer o.wipe()
	if err := writeSession(c.String("out"), name, c.Bool("force"), made, o); err != nil {
		return err
	}
	s.Say("platform verified up to %s (ARK sha256 %s)%s", root.Product, root.Fingerprint(), label(emulated))
	s.Say("wrote %[1]s.godh and %[1]s.session for the host, %[1]s.owner for you: keep it",
		filepath.Join(c.String("out"), name))
	return nil
}

// verifyChain checks the chain against AMD's roots and, if one was named, a
// test root. Whether the platform is emulated follows from the root that it
// ends in, never from what it claims.
func verifyChain(chain *sev.Chain, trustRoot string) (root sev.Root, emulated bool, err error) {
	amd, err := sev.AMDRoots()
	if err != nil {
		return root, false, err
	}
	if root, err = chain.Verify(amd); err == nil || trustRoot == "" || !errors.Is(err, sev.ErrUntrusted) {
		return root, false, err
	}
	test, err := readTestRoot(trustRoot)
	if err != nil {
		return root, false, cli.Fail(cli.ExitUsage, err)
	}
	root, err = chain.Verify([]sev.Root{test})
	return root, true, err
}

// testRootPEM is the type of the PEM block that "swtee root" prints.
const testRootPEM = "SWTEE TEST ROOT"

func readTestRoot(file string) (sev.Root, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return sev.Root{}, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != testRootPEM {
		return sev.Root{}, fmt.Errorf("%s: does not hold a %q; \"swtee root\" prints it", file, testRootPEM)
	}
	root, err := sev.ParseRoot("the test root "+filepath.Base(file), block.Bytes)
	if err != nil {
		return sev.Root{}, fmt.Errorf("%s: %w", file, err)
	}
	return root, nil
}

// writeSession writes the three files, the owner's first: the host's files would be
// useless without the keys.
func writeSession(dir, name string, force bool, made *session.Session, o *ownerFile) error {
	path := func(ext string) string { return filepath.Join(dir, name+ext) }
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	if !force { // if several commands run at once, only one gets the name
		f, err := os.OpenFile(path(".owner"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if errors.Is(err, fs.ErrExist) {
			return cli.Fail(cli.ExitUsage, fmt.Errorf("%s exists", path(".owner")),
				"--force replaces it: a launch under the old session could then not be verified",
				"--name NAME makes a second session")
		}
		if err != nil {
			return cli.Fail(cli.ExitUsage, err)
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	if err := writeOwner(path(".owner"), o); err != nil {
		if !force {
			_ = os.Remove(path(".owner")) // it is empty
		}
		return err
	}
	for _, f := range []struct {
		ext string
		raw []byte
	}{{".godh", made.OwnerCert.Bytes()}, {".session", made.Blob[:]}} {
		text := base64.StdEncoding.EncodeToString(f.raw) + "\n"
		if err := cli.WriteFile(path(f.ext), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
