package main

import (
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/tpm/seal"
)

func newTPMSeal(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "seal", Usage: "seal a secret to a guest's TPM and to what it boots",
		Description: `The secret is encrypted to the TPM's storage root key, which the host gives ("vmlatch tpm
srk"), and the TPM gives it only to a boot with these registers, or with --approver only to
boots that your key approves (latchkey tpm approve): a new kernel is then signed, and nothing
is sealed again.

What is written is a LUKS2 token, which the disk carries (cryptsetup token import), or a file
for "latchguest unseal". It prints latch.tpm=PIN for the guest's command line: with it the
guest opens no disk but its owner's. Registers are predicted from your own copies of the
files. A TPM that is cleared or reset, or whose state is lost, gives nothing: keep a recovery
key in a second key slot.

Examples:

   latchkey tpm seal --srk web.srk --name web --generate disk.key --out root.tpm \
      --firmware OVMF.fd --kernel vmlinuz --initrd initrd.img --cmdline "root=/dev/mapper/root"
   cryptsetup luksAddKey root.img disk.key && rm disk.key
   cryptsetup token import --json-file root.tpm root.img
   latchkey tpm seal --srk web.srk --name web --in disk.key --approver approver.pem.pub --out -`,
		Flags: append(expectedFlags(),
			&urfave.StringFlag{Name: "srk", Usage: "the TPM's storage root key `FILE` (vmlatch tpm srk)"},
			&urfave.StringFlag{Name: "name", Usage: "`NAME` of what is sealed, which approvals name"},
			&urfave.StringFlag{Name: "in", Usage: "the secret `FILE`, at most 128 bytes; - for standard input"},
			&urfave.StringFlag{Name: "generate", Usage: "make a new secret, and write it to `FILE`"},
			&urfave.StringFlag{Name: "approver", Usage: "seal to what this key approves: its public part `FILE`"},
			&urfave.StringFlag{Name: "out", Usage: "write what is sealed to `FILE`, - for standard output"},
		),
		Action: func(c *urfave.Context) error {
			if _, err := cli.Args(c); err != nil {
				return err
			}
			if err := cli.Need(c, "srk", "name", "out"); err != nil {
				return err
			}
			return runSeal(c, s)
		},
	}
}

func runSeal(c *urfave.Context, s *cli.IO) error {
	if err := noEmptyOption(c, "cmdline"); err != nil {
		return err
	}
	if c.IsSet("in") == c.IsSet("generate") {
		return cli.Usagef("the secret: --in FILE, or --generate FILE for a new one")
	}
	p := &seal.Policy{Name: c.String("name")}
	var b *boot
	var err error
	if name := c.String("approver"); name != "" {
		if c.IsSet("firmware") || c.IsSet("expect") || c.IsSet("pcrs") {
			return cli.WithHint(cli.Usagef("--approver and registers: one of them"),
				"which registers a boot must have is part of an approval: latchkey tpm approve")
		}
		if p.Approver, err = readPublic(name); err != nil {
			return err
		}
	} else {
		if b, err = readBoot(c, s); err != nil {
			return err
		}
		if err := seal.CheckSelection(b.selection, b.secureBoot); err != nil {
			return sealFailed(err)
		}
		p.Selection, p.Values = b.selection, b.values
	}
	raw, err := readSmall(c.String("srk"))
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	srk, err := seal.ReadSRK(raw)
	if err != nil {
		return cli.Fail(cli.ExitUsage, fmt.Errorf("--srk %s: %w", c.String("srk"), err),
			"vmlatch tpm srk NAME > FILE, or in the guest tpm2_readpublic -c 0x81000001 -o FILE")
	}
	secret, keep, err := theSecret(c, s)
	if err != nil {
		return err
	}
	defer clear(secret)
	defer keep.discard()
	sealed, err := seal.Seal(rand.Reader, srk, secret, p)
	if err != nil {
		return sealFailed(err)
	}
	if err := keep.write(c.String("generate"), secret); err != nil {
		return err
	}
	if err := writeToken(s, c.String("out"), sealed); err != nil {
		return err
	}
	if b != nil {
		b.tell(s)
		s.Say("sealed to PCR %v (%v)", b.selection, b.selection.Bank)
	}
	pin, err := seal.Pin(secret)
	if err != nil {
		s.Say("no pin: %v; the guest's command line needs latch.tpm=unpinned", err)
		return nil
	}
	s.Say("for the guest's command line: latch.tpm=%s", pin)
	return nil
}

// keeper writes a new secret to its file; there is none for one that was given.
type keeper struct{ out *cli.Output }

func (k keeper) discard() {
	if k.out != nil {
		k.out.Discard()
	}
}

func (k keeper) write(name string, secret []byte) error {
	if k.out == nil {
		return nil
	}
	return notReplaced(k.out.CommitNew(secret), name, "it may be the key of a disk")
}

// theSecret reads the secret, or makes one.
func theSecret(c *urfave.Context, s *cli.IO) ([]byte, keeper, error) {
	name := c.String("generate")
	if name == "" {
		b, err := s.ReadInput(c.String("in"), seal.MaxSecret+1)
		if err != nil {
			return nil, keeper{}, cli.Fail(cli.ExitUsage, fmt.Errorf("--in: %w", err))
		}
		if n := len(b); n > 0 && b[n-1] == '\n' {
			s.Say("warning: the secret ends with a new line, which is a part of it (printf %%s)")
		}
		return b, keeper{}, nil
	}
	out, err := cli.PrepareSecret(name)
	if err != nil {
		return nil, keeper{}, cli.Fail(cli.ExitUsage, err)
	}
	b, err := fresh()
	return b, keeper{out}, err
}

func newTPMApprove(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "approve", Usage: "sign that a boot may have what is sealed to your key's approvals",
		Description: `An approval is for one name, the registers of one boot, and a version. The guest's TPM has a
counter: an approval counts as long as the counter is at most its version. After a good boot of
a new kernel "latchguest revoke VERSION" in the guest ends all lower versions. Without that an
old approval opens for ever. A copy of an older state of the TPM brings an older counter back:
against its host, and against who can write the host's backups, it does not help.

Examples:

   latchkey tpm approve --key approver.pem --name web --version 2 --out web-2.approval \
      --firmware OVMF.fd --kernel vmlinuz-6.12 --initrd initrd-6.12 --cmdline "root=/dev/mapper/root"
   cryptsetup token import --json-file web-2.approval root.img`,
		Flags: append(
			expectedFlags(),
			&urfave.StringFlag{Name: "key", Usage: "your key for approvals: `FILE`, or tpm:FILE, tpm:HANDLE"},
			&urfave.StringFlag{Name: "name", Usage: "`NAME` of what is sealed"},
			&urfave.Uint64Flag{
				Name:  "version",
				Value: 1,
				Usage: "`VERSION`, 1 or more; a new kernel gets a higher one",
			},
			&urfave.StringFlag{Name: "out", Usage: "write the approval to `FILE`, - for standard output"},
			deviceFlag(),
		),
		Action: func(c *urfave.Context) error {
			if _, err := cli.Args(c); err != nil {
				return err
			}
			if err := cli.Need(c, "key", "name", "out"); err != nil {
				return err
			}
			if err := noEmptyOption(c, "cmdline"); err != nil {
				return err
			}
			b, err := readBoot(c, s)
			if err != nil {
				return err
			}
			if err := seal.CheckSelection(b.selection, b.secureBoot); err != nil {
				return sealFailed(err)
			}
			k, err := openKey(c, "key", elliptic.P256())
			if err != nil {
				return err
			}
			defer func() { _ = k.close() }()
			a, err := seal.Approve(rand.Reader, k, c.String("name"), c.Uint64("version"), b.selection, b.values)
			if err != nil {
				return sealFailed(err)
			}
			if err := writeToken(s, c.String("out"), a); err != nil {
				return err
			}
			b.tell(s)
			s.Say("approved for %s, version %d: PCR %v (%v)", a.Name, a.Version, b.selection, b.selection.Bank)
			return nil
		},
	}
}

// notReplaced explains that a file is not replaced.
func notReplaced(err error, name, hint string) error {
	if errors.Is(err, fs.ErrExist) {
		return cli.Fail(cli.ExitUsage, fmt.Errorf("%s exists", name), hint)
	}
	return err
}
