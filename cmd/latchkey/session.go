package main

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
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

The policy is no-debug, no-key-sharing and no-send, and what --policy adds to it:
"latchkey help policy". The host's spec must have the same one, which is printed.

Examples:

   latchkey platform show platform.json       # where the chip's signed certificate is
   latchkey session --platform platform.json --cek cek.cert --out .
   latchkey session --platform platform.json --cek cek.cert --out keys --name web \
      --policy es,api=1.55 --product milan,genoa --passphrase`,
		Flags: append([]urfave.Flag{
			&urfave.StringFlag{Name: "platform", Usage: "the host's `FILE` (vmlatch platform)"},
			cekFlag(),
			cekBundleFlag(),
			&urfave.StringFlag{Name: "out", Usage: "write to the directory `DIR`"},
			&urfave.StringFlag{Name: "name", Value: "guest", Usage: "name of the files"},
			&urfave.StringFlag{
				Name:  "policy",
				Usage: "more of a guest `POLICY`: words such as es,api=1.55, or a number for all of it",
			},
			&urfave.BoolFlag{Name: "allow-debug", Usage: "let the host read the guest's memory (without no-debug)"},
			&urfave.BoolFlag{
				Name:  "allow-key-sharing",
				Usage: "let other guests have the same key (without no-key-sharing)",
			},
			&urfave.BoolFlag{
				Name:  "allow-send",
				Usage: "let the host send the guest to another platform (without no-send)",
			},
		}, append(demandFlags(), trustRootFlag(),
			&urfave.BoolFlag{Name: "passphrase", Usage: "encrypt NAME.owner with a passphrase, which is asked for"},
			passphraseFlag(), deviceFlag(),
			&urfave.BoolFlag{Name: "force", Usage: "replace files that exist"})...),
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

// allowances are the options that take a bit out of the default policy.
var allowances = []struct {
	flag string
	bit  sev.Policy
	word string
}{
	{"allow-debug", sev.PolicyNoDebug, "no-debug"},
	{"allow-key-sharing", sev.PolicyNoKeySharing, "no-key-sharing"},
	{"allow-send", sev.PolicyNoSend, "no-send"},
}

// readPolicy adds the words of --policy to the default without what is allowed. A number
// is all of a policy; what it lacks of the default must be allowed.
func readPolicy(c *urfave.Context) (sev.Policy, error) {
	policy := sev.PolicyDefault
	for _, a := range allowances {
		if c.Bool(a.flag) {
			policy &^= a.bit
		}
	}
	text := strings.TrimSpace(c.String("policy"))
	if text == "" {
		return policy, nil
	}
	given, err := sev.ParsePolicy(text)
	if err != nil {
		return 0, cli.WithHint(cli.Usagef("--%w", err), `"latchkey help policy" explains the words`)
	}
	if text[0] < '0' || text[0] > '9' {
		return policy | given, nil
	}
	for _, a := range allowances {
		if policy&a.bit&^given != 0 {
			return 0, cli.Fail(
				cli.ExitUsage,
				fmt.Errorf("policy %v lacks %s: %s", given, a.word,
					missing(given, a.bit)),
				"--"+a.flag+" makes such a session on purpose",
				"words are added to the default: leave out what it has",
			)
		}
	}
	return given, nil
}

// missing is what a policy without a bit of the default leaves open.
func missing(p, bit sev.Policy) string { return (p | sev.PolicyDefault&^bit | sev.PolicyES).Open()[0] }

func runSession(c *urfave.Context, s *cli.IO) error {
	policy, err := readPolicy(c)
	if err != nil {
		return err
	}
	demands, err := readDemands(c)
	if err != nil {
		return err
	}
	name := c.String("name")
	if err := exchange.CheckName(name); err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	p, err := readPlatform(s, c.String("platform"), c.String("cek"), c.String("bundle"))
	if err != nil {
		return err
	}
	root, emulated, err := p.verify(c.String("trust-root"))
	if err != nil {
		return err
	}
	if err := demands.met(p, root, policy); err != nil {
		return err
	}
	made, err := session.New(rand.Reader, p.chain.PDH, policy)
	if err != nil {
		return err
	}
	defer made.Keys.Wipe()
	o := &ownerFile{
		Schema: ownerSchema, Emulated: emulated, Root: root.Product, RootHash: root.Fingerprint(),
		CPU0ID: p.CPU0ID, Policy: policy, MinAPI: demands.minAPI, Created: time.Now().UTC(),
		TEK: bytes.Clone(made.Keys.TEK[:]), TIK: bytes.Clone(made.Keys.TIK[:]),
	}
	defer o.wipe()
	path := filepath.Join(c.String("out"), name)
	st := &store{
		name: path + ".owner", encrypted: c.Bool("passphrase") || c.IsSet("passphrase-file"),
		passphrase: fresher(newPassphrase(c, s)),
	}
	if err := writeSession(s, st, path, c.Bool("force"), made, o); err != nil {
		return err
	}
	s.Say("platform verified up to %s (ARK sha256 %s)%s", root.Product, root.Fingerprint(), label(emulated))
	s.Say("wrote %[1]s.godh and %[1]s.session for the host, %[1]s.owner for you: keep it", path)
	s.Say(`the host's spec needs policy = ["%s"]`, strings.Join(policy.Words(), `", "`))
	for _, open := range policy.Open() {
		s.Say("the policy leaves open: %s", open)
	}
	return nil
}

// usage is the error of a file that the user named, unless it has an exit code already.
func usage(err error) error {
	if errors.As(err, new(*cli.Error)) {
		return err
	}
	return cli.Fail(cli.ExitUsage, err)
}

// writeSession writes the three files, the owner's first: the host's files would be
// useless without the keys. Without force, if several commands run at once, only one gets
// the name.
func writeSession(s *cli.IO, st *store, path string, force bool, made *session.Session, o *ownerFile) error {
	dir := filepath.Dir(path)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		s.Say("making the directory %s", dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	exists := cli.Fail(cli.ExitUsage, fmt.Errorf("%s exists", st.name),
		"--force replaces it: a launch under the old session could then not be verified",
		"--name NAME makes a second session")
	if _, err := os.Lstat(st.name); err == nil && !force { // before a passphrase is asked for
		return exists
	}
	out, err := cli.PrepareSecret(st.name)
	if err != nil {
		return usage(err)
	}
	defer out.Discard()
	b, err := st.encode(o)
	defer clear(b)
	if err != nil {
		return err
	}
	publish := out.CommitNew
	if force {
		publish = out.Commit
	}
	switch err := publish(b); {
	case errors.Is(err, fs.ErrExist):
		return exists
	case err != nil:
		return err
	}
	for _, f := range []struct {
		ext string
		raw []byte
	}{{".godh", made.OwnerCert.Bytes()}, {".session", made.Blob[:]}} {
		text := base64.StdEncoding.EncodeToString(f.raw) + "\n"
		if err := cli.WriteFile(path+f.ext, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
