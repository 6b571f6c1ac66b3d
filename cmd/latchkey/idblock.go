package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/tpm/tpmkey"
)

// Suffixes of the files for the host: base64, as QEMU's id-block and id-auth expect.
const (
	blockSuffix = ".id-block"
	authSuffix  = ".id-auth"
)

func newIDBlock(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name:      "idblock",
		Usage:     "bind an SEV-SNP launch to a digest: make or check its ID block",
		ArgsUsage: "[make | check] NAME",
		Description: `An SEV-SNP platform compares the launch with the ID block itself, and refuses to
run a guest whose digest or policy differs. "make NAME" signs a block with your ID
key and writes NAME.id-block and NAME.id-auth for the host (QEMU's id-block and
id-auth properties); reports from inside the guest then show the key's digest.
"check NAME" verifies both files and shows their contents.

Keys are on the curve P-384, in PEM files without a passphrase, or in your own TPM:

   latchkey tpm key id.pem --curve P-384

Examples:

   latchkey idblock make guest --id-key id.pem \
      --digest $(latchkey measure --technology sev-snp --firmware OVMF.amdsev.fd --cpu EPYC-Milan)
   latchkey idblock check guest --author`,
		Flags: []urfave.Flag{
			&urfave.StringFlag{Name: "digest", Usage: "launch digest in `HEX` (latchkey measure)"},
			&urfave.StringFlag{Name: "id-key", Usage: "your ID key: `FILE`, or tpm:FILE, tpm:HANDLE"},
			&urfave.StringFlag{
				Name:  "author-key",
				Usage: "an author's key, which signs the ID key: `FILE`, or tpm:…",
			},
			&urfave.StringFlag{
				Name: "policy", Value: "smt",
				Usage: "guest `POLICY`: a number, or words such as smt,single-socket,migrate,abi=1.55",
			},
			&urfave.BoolFlag{Name: "allow-debug", Usage: "sign a policy that lets the host read the guest's memory"},
			&urfave.StringFlag{Name: "family-id", Usage: "16 bytes in `HEX`"},
			&urfave.StringFlag{Name: "image-id", Usage: "16 bytes in `HEX`"},
			&urfave.UintFlag{Name: "svn", Usage: "security version `NUMBER` of the guest"},
			deviceFlag(),
			&urfave.BoolFlag{Name: "author", Usage: "check: an author key must have signed"},
			&urfave.BoolFlag{Name: "force", Usage: "make: replace files that exist"},
			&urfave.BoolFlag{Name: "json", Usage: "print JSON"},
		},
		Action: func(c *urfave.Context) error {
			args, err := cli.Args(c, "make | check", "NAME")
			if err != nil {
				return err
			}
			switch args[0] {
			case "make":
				return makeIDBlock(c, s, args[1])
			case "check":
				return checkIDBlock(c, s, args[1])
			}
			return cli.Choice("", "action", args[0], []string{"make", "check"})
		},
	}
}

func makeIDBlock(c *urfave.Context, s *cli.IO, name string) error {
	policy, err := sev.ParseSNPPolicy(c.String("policy"))
	switch {
	case err != nil:
		return cli.Usagef("--%w", err)
	case policy&sev.SNPPolicyDebug != 0 && !c.Bool("allow-debug"):
		return cli.Fail(cli.ExitUsage, errors.New("--policy: debug lets the host read the guest's memory"),
			"use --allow-debug to sign it anyway")
	case uint64(c.Uint("svn")) > math.MaxUint32:
		return cli.Usagef("--svn %d: must be at most %d (32 bits)", c.Uint("svn"), uint32(math.MaxUint32))
	}
	id := sev.IDBlock{Version: 1, SVN: uint32(c.Uint("svn")), Policy: uint64(policy)}
	for _, f := range []struct {
		flag string
		to   []byte
	}{{"digest", id.Digest[:]}, {"family-id", id.FamilyID[:]}, {"image-id", id.ImageID[:]}} {
		b, err := hex.DecodeString(c.String(f.flag))
		if err != nil || len(b) != len(f.to) && (len(b) > 0 || f.flag == "digest") {
			return cli.Usagef("--%s: must be %d bytes in hex", f.flag, len(f.to))
		}
		copy(f.to, b)
	}
	if c.String("id-key") == "" {
		return cli.WithHint(cli.Usagef("--id-key is needed: the block is signed with it"), hintKey(elliptic.P384()))
	}
	ring := &keyring{c: c}
	defer ring.close()
	key, err := ring.open("id-key", elliptic.P384())
	if err != nil {
		return err
	}
	var author crypto.Signer
	var authorPublic *ecdsa.PublicKey
	if c.IsSet("author-key") {
		k, err := ring.open("author-key", elliptic.P384())
		if err != nil {
			return err
		}
		author, authorPublic = k, k.public
	}
	for _, suffix := range []string{blockSuffix, authSuffix} {
		if _, err := os.Lstat(name + suffix); err == nil && !c.Bool("force") {
			return cli.Fail(cli.ExitUsage, fmt.Errorf("%s%s exists", name, suffix), "--force replaces it")
		}
	}
	auth, err := sev.SignIDBlock(rand.Reader, id, key, author)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	if err := writePair(s, name, id.Bytes(), auth); err != nil {
		return err
	}
	s.Say("wrote %s%s and %s%s for the host", name, blockSuffix, filepath.Base(name), authSuffix)
	return showIDBlock(c, s, id, sev.IDKeys{ID: key.public, Author: authorPublic})
}

// writePair writes both files, and neither until both can be written.
func writePair(s *cli.IO, name string, block, auth []byte) error {
	first, err := s.PrepareOutput(name+blockSuffix, 0o644)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	defer first.Discard()
	second, err := s.PrepareOutput(name+authSuffix, 0o644)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	defer second.Discard()
	text := func(b []byte) []byte { return append([]byte(base64.StdEncoding.EncodeToString(b)), '\n') }
	if err := first.Commit(text(block)); err != nil {
		return err
	}
	return second.Commit(text(auth))
}

// hintKey shows how to make a key, in a file with a new name: it must not overwrite a file
// that the user named.
func hintKey(curve elliptic.Curve) string {
	return "make one: latchkey tpm key --curve " + curve.Params().Name + " " + unusedName("new", ".pem")
}

// unusedName is a name that no file has: a hint must not lead to overwriting one.
func unusedName(stem, suffix string) string {
	name := stem + suffix
	for n := 2; ; n++ {
		if _, err := os.Lstat(name); err != nil {
			return name
		}
		name = fmt.Sprintf("%s-%d%s", stem, n, suffix)
	}
}

// readKey reads a private key from PEM, SEC 1 or PKCS #8.
func readKey(file string, curve elliptic.Curve) (*ecdsa.PrivateKey, error) {
	b, err := readSmall(file)
	if err != nil {
		return nil, cli.Fail(cli.ExitUsage, err)
	}
	defer clear(b)
	k, err := parseKey(b, curve)
	switch {
	case err == nil:
		return k, nil
	case tpmkey.IsFile(b):
		return nil, cli.Fail(cli.ExitUsage, fmt.Errorf("%s: the key is in a TPM", file), "name it "+keyPrefix+file)
	case bytes.Contains(b, []byte("BEGIN PUBLIC KEY")):
		return nil, cli.Fail(cli.ExitUsage, fmt.Errorf("%s: it is the public part of a key", file),
			"name the key itself: "+strings.TrimSuffix(file, ".pub"))
	}
	return nil, cli.Fail(cli.ExitUsage, fmt.Errorf("%s: %w", file, err), hintKey(curve))
}

// parseKey returns the first key on a curve, or an error that describes what it found
// instead.
func parseKey(b []byte, curve elliptic.Curve) (*ecdsa.PrivateKey, error) {
	err := errors.New("does not hold an EC private key in PEM")
	for rest := b; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, err
		}
		var key any
		if k, e := x509.ParseECPrivateKey(block.Bytes); e == nil {
			key = k
		} else if k, e := x509.ParsePKCS8PrivateKey(block.Bytes); e == nil {
			key = k
		}
		switch k, ok := key.(*ecdsa.PrivateKey); {
		case ok && k.Curve == curve:
			return k, nil
		case ok:
			err = fmt.Errorf("the key is on the curve %s: must be %s", k.Curve.Params().Name, curve.Params().Name)
		case strings.HasPrefix(block.Type, "ENCRYPTED") || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED"):
			err = errors.New("the key is encrypted: only keys without a passphrase can be read")
		case key != nil || block.Type == "RSA PRIVATE KEY":
			err = errors.New("the key is not an EC key")
		}
	}
}

func checkIDBlock(c *urfave.Context, s *cli.IO, name string) error {
	read := func(file string) ([]byte, error) {
		b, err := readSmall(file)
		if err != nil {
			return nil, cli.Fail(cli.ExitUsage, err)
		}
		raw, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(b)))
		if err != nil {
			return nil, cli.Fail(cli.ExitUsage, fmt.Errorf("%s: %w", file, err))
		}
		return raw, nil
	}
	raw, err := read(name + blockSuffix)
	if err != nil {
		return err
	}
	id, err := sev.ParseIDBlock(raw)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	auth, err := read(name + authSuffix)
	if err != nil {
		return err
	}
	if c.Bool("author") && !sev.HasAuthor(auth) {
		return cli.Fail(
			cli.ExitRefused,
			errors.New("no author key signed the ID key"),
			"make the block with --author-key",
		)
	}
	keys, err := sev.VerifyIDAuth(id, auth, c.Bool("author") || sev.HasAuthor(auth))
	if err != nil {
		return cli.Fail(cli.ExitRefused, err)
	}
	if err := checkWanted(c, id, keys); err != nil {
		return err
	}
	return showIDBlock(c, s, id, keys)
}

// checkWanted compares with whatever the flags name.
func checkWanted(c *urfave.Context, id sev.IDBlock, keys sev.IDKeys) error {
	other := func(what, is string) error {
		return cli.Fail(cli.ExitRefused, fmt.Errorf("the block is for a different %s", what), "it has "+is)
	}
	if d := c.String("digest"); d != "" && !strings.EqualFold(d, id.Digest.String()) {
		return other("digest", id.Digest.String())
	}
	if c.IsSet("policy") {
		p, err := sev.ParseSNPPolicy(c.String("policy"))
		if err != nil {
			return cli.Usagef("--%w", err)
		}
		if uint64(p) != id.Policy {
			return other("policy", sev.SNPPolicy(id.Policy).String())
		}
	}
	if c.IsSet("svn") && uint64(c.Uint("svn")) != uint64(id.SVN) {
		return other("security version", fmt.Sprint(id.SVN))
	}
	for flag, is := range map[string][]byte{"family-id": id.FamilyID[:], "image-id": id.ImageID[:]} {
		if c.IsSet(flag) && !strings.EqualFold(c.String(flag), hex.EncodeToString(is)) {
			return other(flag, hex.EncodeToString(is))
		}
	}
	ring := &keyring{c: c}
	defer ring.close()
	for flag, is := range map[string]*ecdsa.PublicKey{"id-key": keys.ID, "author-key": keys.Author} {
		if !c.IsSet(flag) {
			continue
		}
		k, err := ring.open(flag, elliptic.P384())
		if err != nil {
			return err
		}
		if is == nil || !is.Equal(k.public) {
			return cli.Fail(cli.ExitRefused, fmt.Errorf("it was not signed by --%s", flag))
		}
	}
	return nil
}

func showIDBlock(c *urfave.Context, s *cli.IO, id sev.IDBlock, keys sev.IDKeys) error {
	digest := func(k *ecdsa.PublicKey) (string, error) {
		if k == nil {
			return "", nil
		}
		d, err := sev.KeyDigest(k)
		return hex.EncodeToString(d[:]), err
	}
	idKey, err1 := digest(keys.ID)
	author, err2 := digest(keys.Author)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	out := struct {
		Schema  string `json:"schema"`
		Digest  string `json:"digest"`
		Policy  string `json:"policy"`
		Version uint32 `json:"version"`
		SVN     uint32 `json:"svn"`
		Family  string `json:"family-id"`
		Image   string `json:"image-id"`
		IDKey   string `json:"id-key-digest"`
		Author  string `json:"author-key-digest,omitempty"`
	}{
		"latchkey.idblock/1", id.Digest.String(), fmt.Sprintf("%#x", id.Policy), id.Version, id.SVN,
		hex.EncodeToString(id.FamilyID[:]), hex.EncodeToString(id.ImageID[:]), idKey, author,
	}
	if c.Bool("json") {
		return s.JSON(out)
	}
	fmt.Fprintf(s.Out, "digest             %s\npolicy             %v\nversion, svn       %d, %d\n",
		out.Digest, sev.SNPPolicy(id.Policy), out.Version, out.SVN)
	_, err := fmt.Fprintf(s.Out, "id-key digest      %s\n", out.IDKey)
	if author != "" {
		_, err = fmt.Fprintf(s.Out, "author-key digest  %s\n", out.Author)
	}
	return err
}
