package main

import (
	"bytes"
	"crypto/rand"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/tpm"
	"github.com/vmlatch/vmlatch/firmware/tpm/seal"
)

// isKept reports whether a file is of use with a TPM alone.
func isKept(b []byte) bool { return bytes.HasPrefix(bytes.TrimSpace(b), []byte("{")) }

// keep seals a secret to your own TPM, which gives it after any boot.
func keep(name string, secret []byte, device string) ([]byte, error) {
	t, err := tpm.Open(device)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	parent, err := seal.OpenParent(t)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	s, err := seal.Seal(rand.Reader, parent.Public(), secret, &seal.Policy{Name: name, Kept: true})
	if err != nil {
		return nil, err
	}
	return tokenText(s)
}

// unkeep asks your own TPM for a secret that it keeps.
func unkeep(b []byte, device string) ([]byte, error) {
	s, err := seal.ParseKept(b)
	if err != nil {
		return nil, err
	}
	t, err := tpm.Open(device)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	return s.Unseal(t, nil)
}

// readKept reads a secret that your own TPM keeps.
func readKept(name, device string) ([]byte, error) {
	b, err := readSmall(name)
	if err != nil {
		return nil, err
	}
	secret, err := unkeep(b, device)
	return secret, adviseTPM(err)
}

func newTPMKeep(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "keep", Usage: "keep a passphrase in your own TPM", ArgsUsage: "FILE",
		Description: `It makes a passphrase that only your own TPM gives, after any boot, and writes to FILE how to
ask for it. Owner files that are encrypted with it open on this machine alone. Keep another
copy of what must outlive this machine.

Examples:

   latchkey tpm keep owner.tpm
   latchkey session --passphrase-file tpm:owner.tpm --platform platform.json --cek cek.cert
   latchkey verify --owner guest.owner --passphrase-file tpm:owner.tpm …`,
		Flags: []urfave.Flag{deviceFlag()},
		Action: func(c *urfave.Context) error {
			args, err := cli.Args(c, "FILE")
			if err != nil {
				return err
			}
			out, err := cli.PrepareSecret(args[0])
			if err != nil {
				return cli.Fail(cli.ExitUsage, err)
			}
			defer out.Discard()
			secret, err := fresh()
			if err != nil {
				return err
			}
			defer clear(secret)
			b, err := keep("passphrase", secret, c.String("tpm"))
			if err != nil {
				return adviseTPM(err)
			}
			if err := out.CommitNew(b); err != nil {
				return notReplaced(err, args[0], "what it encrypts could not be opened again")
			}
			s.Say("wrote %s: --passphrase-file tpm:%s", args[0], args[0])
			return nil
		},
	}
}
