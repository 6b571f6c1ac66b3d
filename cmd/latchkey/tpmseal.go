package main

import (
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"strings"

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
for "latchguest unseal". The guest's command line needs latch.tpm=PIN (latchkey tpm pin): with
it the guest opens no disk but its owner's. Registers are predicted from your own copies of the
files. A TPM that is cleared or reset, or whose state is lost, gives nothing: keep a recovery
key in a second key slot.

Examples:

   latchkey tpm pin --generate disk.key
   latchkey tpm seal --srk web.srk --name web --in disk.key --out root.tpm --firmware OVMF.fd \
      --kernel vmlinuz --initrd initrd.img --cmdline "root=/dev/mapper/root latch.tpm=PIN"
   cryptsetup luksAddKey root.img disk.key && rm disk.key
   cryptsetup token import --json-file root.tpm root.img
   latchkey tpm seal --srk web.srk --name web --in disk.key --approver approver.pem.pub --out -`,
		Flags: append(expectedFlags(),
			&urfave.StringFlag{Name: "srk", Usage: "the TPM's storage root key `FILE` (vmlatch tpm srk)"},
			&urfave.StringFlag{Name: "name", Usage: "`NAME` of what is sealed, which approvals name"},
			&urfave.StringFlag{Name: "in", Usage: "the secret `FILE`, at most 128 bytes; - for standard input"},
			&urfave.StringFlag{Name: "approver", Usage: "seal to what this key approves: its public part `FILE`"},
			&urfave.StringFlag{Name: "out", Usage: "write what is sealed to `FILE`, - for standard output"},
		),
		Action: func(c *urfave.Context) error {
			if _, err := cli.Args(c); err != nil {
				return err
			}
			if err := cli.Need(c, "srk", "name", "in", "out"); err != nil {
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
		if err := seal.CheckSelection(b.Selection, b.secureBoot); err != nil {
			return sealFailed(err)
		}
		p.Selection, p.Values = b.Selection, b.Values
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
	secret, err := readSealable(s, c.String("in"))
	if err != nil {
		return err
	}
	defer clear(secret)
	pin, noPin := seal.Pin(secret)
	if c.IsSet("cmdline") && noPin == nil {
		if err := checkWord(s, c.String("cmdline"), pin); err != nil {
			return err
		}
	}
	sealed, err := seal.Seal(rand.Reader, srk, secret, p)
	if err != nil {
		return sealFailed(err)
	}
	if err := writeToken(s, c.String("out"), sealed); err != nil {
		return err
	}
	if b != nil {
		b.tell(s)
		b.warn(s)
		s.Say("sealed to PCR %v (%v)", b.Selection, b.Selection.Bank)
	} else {
		s.Say("sealed to what %s approves for %s", c.String("approver"), p.Name)
	}
	if noPin != nil {
		s.Say(
			"warning: the secret is too short for a pin: the guest cannot tell it from others (latch.tpm=unpinned)",
		)
	}
	return nil
}

// checkWord looks for the secret's pin on the guest's command line.
func checkWord(s *cli.IO, line, pin string) error {
	for word := range strings.FieldsSeq(line) {
		switch value, ok := strings.CutPrefix(word, pinWord); {
		case !ok:
		case value == pin:
			return nil
		case seal.IsPin(value):
			return cli.Usagef("--cmdline: %s is the pin of another secret, not %s", word, pinWord+pin)
		default:
			s.Say("warning: %s: the guest opens any disk whose secret was sealed to this TPM; %s%s keeps others out",
				word, pinWord, pin)
			return nil
		}
	}
	s.Say("warning: latchguest opens no disk with this command line, which lacks %s%s", pinWord, pin)
	return nil
}

// pinWord begins the word of the guest's command line that has the pin.
const pinWord = "latch.tpm="

func newTPMPin(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "pin", Usage: "print the word of the command line that pins a disk's secret", ArgsUsage: "FILE",
		Description: `With the public key of a guest's TPM, others can seal secrets to it and put disks there. The
pin names the secret without telling it: with it on the measured command line the guest opens
the disk of this secret alone. --generate makes a new secret first.

Examples:

   latchkey tpm pin --generate disk.key
   latchkey tpm pin disk.key`,
		Flags: []urfave.Flag{
			&urfave.BoolFlag{Name: "generate", Usage: "make a new secret, and write it to FILE"},
		},
		Action: func(c *urfave.Context) error {
			args, err := cli.Args(c, "FILE")
			if err != nil {
				return err
			}
			if c.Bool("generate") {
				if err := generate(args[0]); err != nil {
					return err
				}
			}
			secret, err := readSealable(s, args[0])
			if err != nil {
				return err
			}
			defer clear(secret)
			pin, err := seal.Pin(secret)
			if err != nil {
				return cli.Fail(cli.ExitUsage, fmt.Errorf("%s: %w", args[0], err),
					"--generate makes one that is long enough; or write latch.tpm=unpinned")
			}
			_, err = fmt.Fprintln(s.Out, pinWord+pin)
			return err
		},
	}
}

// generate makes a file with a new secret.
func generate(name string) error {
	out, err := cli.PrepareSecret(name)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	defer out.Discard()
	secret, err := fresh()
	if err != nil {
		return err
	}
	defer clear(secret)
	return notReplaced(out.CommitNew(secret), name, "it may be the key of a disk")
}

// readSealable reads a secret that is to be sealed.
func readSealable(s *cli.IO, name string) ([]byte, error) {
	b, err := s.ReadInput(name, seal.MaxSecret)
	if err != nil {
		return nil, cli.Fail(cli.ExitUsage, err)
	}
	if n := len(b); n > 0 && b[n-1] == '\n' {
		s.Say("warning: %s ends with a new line, which is a part of the secret (printf %%s)", name)
	}
	return b, nil
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
			if err := seal.CheckSelection(b.Selection, b.secureBoot); err != nil {
				return sealFailed(err)
			}
			ring := &keyring{c: c}
			defer ring.close()
			k, err := ring.open("key", elliptic.P256())
			if err != nil {
				return err
			}
			if c.IsSet("kernel") && !strings.Contains(" "+c.String("cmdline"), " "+pinWord) {
				s.Say("warning: latchguest opens no disk with this command line, which lacks %sPIN", pinWord)
			}
			a, err := seal.Approve(rand.Reader, k, c.String("name"), c.Uint64("version"), b.Selection, b.Values)
			if err != nil {
				return sealFailed(err)
			}
			if err := writeToken(s, c.String("out"), a); err != nil {
				return err
			}
			b.tell(s)
			b.warn(s)
			s.Say("approved for %s, version %d: PCR %v (%v)", a.Name, a.Version, b.Selection, b.Selection.Bank)
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
