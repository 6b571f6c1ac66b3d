package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/tpm"
	"github.com/vmlatch/vmlatch/firmware/tpm/predict"
	"github.com/vmlatch/vmlatch/firmware/tpm/seal"
	"github.com/vmlatch/vmlatch/firmware/tpm/tpmkey"
	"github.com/vmlatch/vmlatch/firmware/tpm/verify"
)

func newTPM(s *cli.IO) *urfave.Command {
	commands := []*urfave.Command{
		newTPMPin(
			s,
		), newTPMSeal(s), newTPMApprove(s), newTPMKey(s), newTPMKeep(s), newTPMCredential(s), newTPMQuote(s),
	}
	return &urfave.Command{
		Name: "tpm", Usage: "seal secrets to a guest's TPM, approve its boots, verify its quotes",
		ArgsUsage: "COMMAND",
		Description: `A guest's TPM is its host's: what is sealed to it, and what it signs, is in the hands of
whoever controls the host. It protects against others: a stolen disk opens nowhere else, and
not with another kernel, initrd or command line. For a host that you do not trust use
SEV-SNP or TDX (latchkey report, quote, serve).

Examples:

   vmlatch tpm srk web > web.srk                 # on the host
   latchkey tpm pin --generate disk.key          # prints latch.tpm=PIN for the command line
   latchkey tpm seal --srk web.srk --name web --in disk.key --out root.tpm --firmware OVMF.fd \
      --kernel vmlinuz --initrd initrd.img --cmdline "root=/dev/mapper/root latch.tpm=PIN"
   latchkey tpm key approver.pem
   latchkey tpm approve --key approver.pem --name web --version 2 --out web-2.approval …
   latchkey tpm quote quote.json --ak web.ak --nonce 00112233445566778899aabbccddeeff`,
		Subcommands: commands,
		Action: func(c *urfave.Context) error {
			if c.NArg() == 0 {
				return urfave.ShowSubcommandHelp(c)
			}
			var names []string
			for _, x := range commands {
				names = append(names, x.Name)
			}
			return cli.Choice("", "command", c.Args().First(), names)
		},
	}
}

// deviceFlag names the owner's own TPM.
func deviceFlag() urfave.Flag {
	return &urfave.StringFlag{
		Name: "tpm", Value: tpm.Device,
		Usage: "your own TPM, for keys tpm:…: a device, or the socket `FILE` of an emulated one",
	}
}

// keyPrefix begins the name of a key that is in a TPM: a file, or a handle.
const keyPrefix = "tpm:"

// signer is a key of an owner, in a file or in a TPM.
type signer struct {
	crypto.Signer
	public *ecdsa.PublicKey
}

// keyring opens keys, those in the owner's TPM over one connection.
type keyring struct {
	c    *urfave.Context
	tpm  *tpm.Conn
	keys []*tpmkey.Key
}

func (r *keyring) close() {
	for _, k := range r.keys {
		_ = k.Flush()
	}
	if r.tpm != nil {
		_ = r.tpm.Close()
	}
}

// open opens a key on a curve, in a file or in a TPM.
func (r *keyring) open(flag string, curve elliptic.Curve) (*signer, error) {
	name := r.c.String(flag)
	k := &signer{}
	if inside, ok := strings.CutPrefix(name, keyPrefix); ok {
		key, err := r.openInside(inside)
		if err != nil {
			return nil, adviseTPM(fmt.Errorf("--%s %s: %w", flag, name, err))
		}
		r.keys = append(r.keys, key)
		k.Signer = key
	} else {
		key, err := readKey(name, curve)
		if err != nil {
			return nil, err
		}
		k.Signer = key
	}
	k.public, _ = k.Public().(*ecdsa.PublicKey)
	if k.public == nil || k.public.Curve != curve {
		return nil, cli.Usagef("--%s %s: the key is on another curve: must be %s", flag, name, curve.Params().Name)
	}
	return k, nil
}

func (r *keyring) openInside(name string) (*tpmkey.Key, error) {
	handle, err := strconv.ParseUint(name, 0, 32)
	var b []byte
	if err != nil {
		if b, err = readSmall(name); err != nil {
			return nil, cli.Fail(
				cli.ExitUsage,
				err,
				"a handle, such as tpm:0x81000010, or a file of latchkey tpm key --in-tpm",
			)
		}
	}
	if b != nil && !tpmkey.IsFile(b) {
		return nil, cli.Fail(cli.ExitUsage, errors.New("it is not a key of a TPM (TSS2 PRIVATE KEY)"),
			"a key in a file is named without "+keyPrefix)
	}
	if r.tpm == nil {
		if r.tpm, err = tpm.Open(r.c.String("tpm")); err != nil {
			return nil, err
		}
	}
	if b != nil {
		return tpmkey.Load(r.tpm, b)
	}
	return tpmkey.Kept(r.tpm, uint32(handle))
}

// adviseTPM gives an error of a TPM its hint.
func adviseTPM(err error) error {
	var e *tpm.Error
	if errors.As(err, &e) && e.Fix != "" {
		return cli.WithHint(err, e.Fix)
	}
	return err
}

func newTPMKey(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "key", Usage: "make a key, in a file or in your own TPM", ArgsUsage: "FILE",
		Description: `Without --in-tpm the key itself is in FILE. With it the key is in your TPM and never leaves
it; FILE, which OpenSSL's provider for TPMs reads too, is of use only with this TPM, so keep a
second way: an ID key that is lost cannot be made again.

Approvals (latchkey tpm approve) need a key on P-256 of their own, ID blocks one on P-384. The
public part is written to FILE.pub.

Examples:

   latchkey tpm key approver.pem
   latchkey tpm key id.pem --curve P-384 --in-tpm
   latchkey idblock make guest --id-key tpm:id.pem --digest …`,
		Flags: []urfave.Flag{
			&urfave.StringFlag{Name: "curve", Value: "P-256", Usage: "`CURVE`: P-256 or P-384"},
			&urfave.BoolFlag{Name: "in-tpm", Usage: "make it in your own TPM"},
			deviceFlag(),
		},
		Action: func(c *urfave.Context) error {
			args, err := cli.Args(c, "FILE")
			if err != nil {
				return err
			}
			return makeKey(c, s, args[0])
		},
	}
}

func makeKey(c *urfave.Context, s *cli.IO, name string) error {
	curve := map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384()}[c.String("curve")]
	if c.IsSet("tpm") && !c.Bool("in-tpm") {
		return cli.WithHint(cli.Usagef("--tpm is for a key in your TPM"), "--in-tpm makes it there")
	}
	if curve == nil {
		return cli.Choice("curve", "curve", c.String("curve"), []string{"P-256", "P-384"})
	}
	out, err := cli.PrepareSecret(name)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	defer out.Discard()
	side, err := s.PrepareOutput(name+".pub", 0o644)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	defer side.Discard()
	b, public, err := newKey(c, curve)
	if err != nil {
		return adviseTPM(err)
	}
	defer clear(b)
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return err
	}
	if err := out.CommitNew(b); err != nil {
		return notReplaced(err, name, "what it has signed could not be signed again")
	}
	if err := side.Commit(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})); err != nil {
		return err
	}
	s.Say("wrote %s and %s.pub", name, name)
	return nil
}

// newKey is a key on a curve in PEM, in your TPM or in itself.
func newKey(c *urfave.Context, curve elliptic.Curve) ([]byte, crypto.PublicKey, error) {
	if !c.Bool("in-tpm") {
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			return nil, nil, err
		}
		der, err := x509.MarshalECPrivateKey(k)
		defer clear(der)
		return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), k.Public(), err
	}
	t, err := tpm.Open(c.String("tpm"))
	if err != nil {
		return nil, nil, err
	}
	defer t.Close()
	b, err := tpmkey.Make(t, curve)
	if err != nil {
		return nil, nil, err
	}
	k, err := tpmkey.Load(t, b)
	if err != nil {
		return nil, nil, err
	}
	return b, k.Public(), k.Flush()
}

// expectedFlags name the registers of a boot, and where their values come from.
func expectedFlags() []urfave.Flag {
	return append(bootFlags(),
		&urfave.StringFlag{
			Name:  "pcrs",
			Usage: "`REGISTERS` (default 4,7,9,15 for --kernel, 4,7,11,12,13,15 for --uki)",
		},
		&urfave.StringFlag{Name: "bank", Value: "sha256", Usage: "`BANK` of the registers"},
		&urfave.StringFlag{Name: "expect", Usage: "take values from a table `FILE` that was kept (latchkey pcrs)"},
	)
}

// boot is the registers of a boot that an owner wants.
type boot struct {
	verify.Registers
	secureBoot bool
	holds      []string // conditions
}

// readBoot predicts the registers that the flags name, or takes them from a table.
func readBoot(c *urfave.Context, s *cli.IO) (*boot, error) {
	if err := noBootFlags(c); err != nil {
		return nil, err
	}
	const hint = "--firmware with --kernel or --uki predicts its registers; --expect FILE has them"
	switch predicted, kept := c.IsSet("firmware"), c.IsSet("expect"); {
	case predicted && kept:
		return nil, cli.WithHint(cli.Usagef("--firmware and --expect: one of them"), hint)
	case !predicted && !kept, predicted && !c.IsSet("kernel") && !c.IsSet("uki"):
		return nil, cli.WithHint(cli.Usagef("what the guest boots is not named"), hint)
	}
	bank, err := eventlog.BankNamed(c.String("bank"))
	if err != nil {
		return nil, cli.Usagef("--bank: %w", err)
	}
	b := &boot{Registers: verify.Registers{Values: map[int][]byte{}}}
	text := c.String("pcrs")
	switch {
	case text != "":
	case c.IsSet("kernel"):
		text = "4,7,9,15"
	case c.IsSet("uki"):
		text = "4,7,11,12,13,15"
	default:
		return nil, cli.Usagef("--pcrs is needed with --expect: which registers count")
	}
	if b.Selection, err = tpm.ParseSelection(bank, text); err != nil {
		return nil, cli.Usagef("--pcrs: %w", err)
	}
	if c.IsSet("expect") {
		return b, b.fromTable(c.String("expect"))
	}
	return b, b.predict(c, s)
}

func (b *boot) fromTable(name string) error {
	table, err := readExpected(name, b.Selection.Bank)
	if err != nil {
		return cli.Usagef("--expect %s: %w", name, err)
	}
	for _, n := range b.Selection.PCRs {
		if b.Values[n] = table[n].Value; b.Values[n] == nil {
			return cli.Usagef("--expect %s: it has no value of PCR %d", name, n)
		}
	}
	return nil
}

func (b *boot) predict(c *urfave.Context, s *cli.IO) error {
	in, err := bootInputs(c, s, []eventlog.Bank{b.Selection.Bank})
	if err != nil {
		return err
	}
	p, err := predict.Predict(in)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	b.secureBoot = p.SecureBoot
	for _, n := range b.Selection.PCRs {
		if n >= predict.Registers {
			return cli.Usagef("--pcrs: PCR %d is not predicted", n)
		}
		switch x := p.PCRs[n]; x.Certainty {
		case predict.Unknown:
			return cli.Fail(cli.ExitUsage, fmt.Errorf("PCR %d cannot be predicted: %s", n, x.Why),
				"leave it out (--pcrs), or take it from a boot: latchkey pcrs --log …, then --expect")
		case predict.DependsOn:
			b.holds = append(b.holds, fmt.Sprintf("PCR %d holds if %s", n, x.Why))
			fallthrough
		default:
			b.Values[n] = x.Values[b.Selection.Bank]
		}
	}
	return nil
}

// tell says what the values depend on.
func (b *boot) tell(s *cli.IO) {
	for _, h := range b.holds {
		s.Say("%s", h)
	}
}

// warn warns of registers to which a secret is sealed less well than it could be.
func (b *boot) warn(s *cli.IO) {
	if !slices.Contains(b.Selection.PCRs, seal.ClosingPCR) {
		s.Say("warning: without PCR %d whatever runs later in the same boot can unseal it too", seal.ClosingPCR)
	}
}

// writeToken writes what a disk's header, or a file, carries.
func writeToken(s *cli.IO, name string, token any) error {
	b, err := tokenText(token)
	if err != nil {
		return err
	}
	if name == "-" {
		_, err := s.Out.Write(b)
		return err
	}
	out, err := s.PrepareOutput(name, 0o644)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	defer out.Discard()
	return out.Commit(b)
}

func tokenText(token any) ([]byte, error) {
	b, err := json.MarshalIndent(token, "", "  ")
	return append(b, '\n'), err
}

// readPublic reads the public part of a key for approvals.
func readPublic(name string) (crypto.PublicKey, error) {
	b, err := readSmall(name)
	if err != nil {
		return nil, cli.Fail(cli.ExitUsage, err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, cli.Fail(cli.ExitUsage, fmt.Errorf("%s: does not hold a public key in PEM", name),
			"latchkey tpm key writes it next to the key, as FILE.pub")
	}
	k, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, cli.Fail(cli.ExitUsage, fmt.Errorf("%s: %w", name, err))
	}
	return k, nil
}

// fresh is a new passphrase: 32 random bytes in hex.
func fresh() ([]byte, error) {
	b := make([]byte, 32)
	defer clear(b)
	if _, err := io.ReadFull(rand.Reader, b); err != nil {
		return nil, err
	}
	return hex.AppendEncode(nil, b), nil
}

// sealFailed gives an error of sealing its exit code and hint.
func sealFailed(err error) error {
	if errors.Is(err, seal.ErrPolicy) || errors.Is(err, seal.ErrKey) {
		return cli.Fail(cli.ExitUsage, err)
	}
	return adviseTPM(err)
}
