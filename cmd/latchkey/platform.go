package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/evidence/bundle"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/exchange"
)

func newPlatform(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "platform", Usage: "show a host's platform file, and where to get its signed CEK",
		ArgsUsage: "show FILE",
		Description: `Platforms export their CEK, the chip's certificate, without a signature. AMD
publishes the signed one, by the chip's ID, at the address that is shown here.

Example:

   curl -o cek.cert "$(latchkey platform show --json platform.json | jq -r '."cek-address"')"
   latchkey session --platform platform.json --cek cek.cert --out .

The exit code is 0 for a platform that does not verify, too: "latchkey session" decides.`,
		Flags: []urfave.Flag{cekFlag(), cekBundleFlag(), trustRootFlag(), &urfave.BoolFlag{
			Name:  "json",
			Usage: "print JSON",
		}},
		Action: func(c *urfave.Context) error {
			args, err := cli.Args(c, "show", "FILE")
			if err != nil {
				return err
			}
			if args[0] != "show" {
				return cli.Choice("", "action", args[0], []string{"show"})
			}
			p, err := readPlatform(s, args[1], c.String("cek"), c.String("bundle"))
			if err != nil {
				return err
			}
			return p.show(c, s)
		},
	}
}

func cekFlag() urfave.Flag {
	return &urfave.StringFlag{
		Name:  "cek",
		Usage: "the chip's certificate as AMD signed it, `FILE` (latchkey platform show says where to get it)",
	}
}

func cekBundleFlag() urfave.Flag {
	return &urfave.StringFlag{
		Name:  "bundle",
		Usage: "take the chip's certificate from the bundle `FILE` (latchkey bundle)",
	}
}

func trustRootFlag() urfave.Flag {
	return &urfave.StringFlag{Name: "trust-root", Usage: "also trust the test root in `FILE`: for emulated platforms"}
}

// platform is what a host shows of itself. Nothing in it is believed before its
// certificates verify; the chip's ID is not even then, for no certificate holds it.
type platform struct {
	*exchange.Platform
	chain *sev.Chain
}

func readPlatform(s *cli.IO, file, cek, kept string) (*platform, error) {
	b, err := s.ReadInput(file, exchange.MaxFile)
	if err != nil {
		return nil, cli.Fail(cli.ExitUsage, err)
	}
	p := &platform{}
	if p.Platform, err = exchange.ParsePlatform(b); err != nil {
		return nil, cli.Fail(cli.ExitUsage, err, `it is made by "vmlatch platform"`)
	}
	if p.chain, err = sev.ParseChain(p.PDH, p.CertChain); err != nil {
		return p, err
	}
	return p, p.addCEK(cek, kept)
}

// addCEK takes the chip's certificate from a file, or the one of a bundle that is for its key.
func (p *platform) addCEK(cek, kept string) error {
	if cek == "" {
		b, err := readBundle(kept)
		if err != nil || b == nil {
			return err
		}
		for _, part := range b.Parts {
			if part.Kind != bundle.CEK {
				continue
			}
			if with, err := p.chain.WithCEK(part.Data); err == nil {
				p.chain = with
				return nil
			}
		}
		return nil // the platform may export a signed one
	}
	b, err := readSmall(cek)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	with, err := p.chain.WithCEK(b)
	if err != nil {
		return cli.Fail(cli.ExitRefused, fmt.Errorf("--cek %s: %w", cek, err), p.whereCEK()...)
	}
	p.chain = with
	return nil
}

// chipIDSize is the length in bytes of a chip's ID (SEV API, chapter 5.16, GET_ID).
const chipIDSize = 64

// address is where AMD publishes the signed CEK, or "" if the platform gives no chip ID.
func (p *platform) address() string {
	if len(p.CPU0ID) != chipIDSize {
		return ""
	}
	return sev.CEKAddress(p.CPU0ID)
}

func (p *platform) whereCEK() []string {
	if a := p.address(); a != "" {
		return []string{"AMD publishes the signed one: " + a, "save it and name it with --cek FILE (2084 bytes)"}
	}
	lacks := "has no chip ID (QEMU gives it since 7.1)"
	if n := len(p.CPU0ID); n != 0 {
		lacks = fmt.Sprintf("has a chip ID of %d bytes, not %d", n, chipIDSize)
	}
	return []string{
		"AMD publishes the signed one at " + sev.CEKAddress(nil) + "ID, but this file " + lacks,
		`ask the host for the ID ("sevctl show identifier" or "sevtool --get_id" prints it)`,
		"save the certificate and name it with --cek FILE (2084 bytes)",
	}
}

// verify checks the chain against AMD's roots and, if one was named, a test root. Whether
// the platform is emulated follows from the root that it ends in, never from what it
// claims.
func (p *platform) verify(trustRoot string) (root sev.Root, emulated bool, err error) {
	amd, err := sev.AMDRoots()
	if err != nil {
		return root, false, err
	}
	switch root, err = p.chain.Verify(amd); {
	case errors.Is(err, sev.ErrUnsignedCEK):
		return root, false, cli.Fail(cli.ExitRefused, err, p.whereCEK()...)
	case err == nil || trustRoot == "" || !errors.Is(err, sev.ErrUntrusted):
		return root, false, err
	}
	test, err := readTestRoot(trustRoot)
	if err != nil {
		return root, false, cli.Fail(cli.ExitUsage, err)
	}
	root, err = p.chain.Verify([]sev.Root{test})
	return root, true, err
}

func readTestRoot(file string) (sev.Root, error) {
	b, err := readSmall(file)
	if err != nil {
		return sev.Root{}, err
	}
	return bundle.ParseSEVRoot(file, b)
}

// api is the version of the platform's firmware, which the PDH's signature covers.
func (p *platform) api() sev.Build {
	major, minor := p.chain.PDH.API()
	return sev.Build{Major: major, Minor: minor}
}

func apiText(b sev.Build) string { return fmt.Sprintf("%d.%d", b.Major, b.Minor) }

// parseAPI reads a version of the SEV API, MAJOR.MINOR.
func parseAPI(text string) (major, minor uint8, err error) {
	major, minor, ok := sev.ParseVersion(text)
	if !ok {
		return 0, 0, fmt.Errorf("%q: an API version is written MAJOR.MINOR, such as 1.55", text)
	}
	return major, minor, nil
}

// cekDigest identifies the chip: the SHA-256 of its key as an uncompressed point (SEC 1,
// section 2.3.3).
func (p *platform) cekDigest() string {
	key, err := p.chain.CEK.Key.Bytes()
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:])
}

// demands are what an owner asks of a platform beyond AMD's signature.
type demands struct {
	products []string
	chip     string
	minAPI   string
}

func demandFlags() []urfave.Flag {
	return []urfave.Flag{
		&urfave.StringFlag{
			Name: "product",
			Usage: "the platform must be of this product `LINE`: " + strings.Join(
				sev.Products(),
				", ",
			) + "; or several, with commas",
		},
		&urfave.StringFlag{
			Name:  "chip",
			Usage: "the platform must be this one: chip ID or CEK digest in `HEX` (latchkey platform show)",
		},
		&urfave.StringFlag{
			Name:  "min-api",
			Usage: "the platform's firmware must have at least this API `VERSION`, such as 1.55, now and at the launch",
		},
	}
}

func readDemands(c *urfave.Context) (*demands, error) {
	d := &demands{chip: strings.ToLower(c.String("chip")), minAPI: c.String("min-api")}
	if list := c.String("product"); list != "" {
		d.products = strings.Split(strings.ToLower(list), ",")
	}
	for _, p := range d.products {
		if !slices.Contains(sev.Products(), p) {
			return nil, cli.Choice("product", "product line", p, sev.Products())
		}
	}
	if raw, err := hex.DecodeString(d.chip); err != nil ||
		d.chip != "" && len(raw) != chipIDSize && len(raw) != sha256.Size {
		return nil, cli.Usagef(
			"--chip: must be %d bytes in hex (a chip's ID) or %d (the digest of its CEK)",
			chipIDSize,
			sha256.Size,
		)
	}
	if d.minAPI != "" {
		if _, _, err := parseAPI(d.minAPI); err != nil {
			return nil, cli.Usagef("--min-api %w", err)
		}
	}
	return d, nil
}

// met compares a verified platform with the demands, and with the policy's own version.
func (d *demands) met(p *platform, root sev.Root, policy sev.Policy) error {
	refuse := func(format string, args ...any) error {
		return cli.Fail(cli.ExitRefused, fmt.Errorf(format, args...))
	}
	if len(d.products) > 0 && !slices.Contains(d.products, root.Product) {
		return refuse("the platform is of the line %s, and --product asks for %s", root.Product,
			strings.Join(d.products, ", "))
	}
	if id, _ := hex.DecodeString(d.chip); len(id) == sha256.Size && d.chip != p.cekDigest() ||
		len(id) == chipIDSize && !bytes.Equal(id, p.CPU0ID) {
		return refuse("the platform is another chip than --chip asks for: its ID is %x, the digest of its CEK %s",
			p.CPU0ID, p.cekDigest())
	}
	have := p.api()
	if major, minor, err := parseAPI(d.minAPI); err == nil && !have.AtLeast(major, minor) {
		return refuse("the platform's firmware has API %s, and --min-api asks for %s", apiText(have), d.minAPI)
	}
	if major, minor := policy.MinAPI(); !have.AtLeast(major, minor) {
		return cli.Fail(
			cli.ExitRefused,
			fmt.Errorf("the policy asks for api=%d.%d, and the platform's firmware has %s: "+
				"it would refuse the launch", major, minor, apiText(have)),
			"have the host update its SEV firmware",
		)
	}
	return nil
}

func (p *platform) show(c *urfave.Context, s *cli.IO) error {
	root, emulated, err := p.verify(c.String("trust-root"))
	verified := "no: " + fmt.Sprint(err)
	if err == nil {
		verified = fmt.Sprintf("up to %s%s", root.Product, label(emulated))
	}
	if c.Bool("json") {
		out := map[string]any{
			"schema": "latchkey.platform/1", "verified": err == nil, "emulated": p.Emulated || emulated,
			"chip-id": hex.EncodeToString(p.CPU0ID), "cek-digest": p.cekDigest(), "cek-signed": p.chain.CEK.Signed(),
			"cek-address": p.address(), "api": apiText(p.api()), "cbitpos": p.CBitPos,
			"reduced-phys-bits": p.ReducedPhysBits,
		}
		if err != nil {
			out["reason"] = err.Error()
		} else {
			out["product"], out["ark-sha256"] = root.Product, root.Fingerprint()
		}
		return s.JSON(out)
	}
	signed, id := "yes", hex.EncodeToString(p.CPU0ID)
	if !p.chain.CEK.Signed() {
		signed = "no, as platforms export it"
	}
	if id == "" {
		id = "not given (QEMU gives it since 7.1)"
	}
	t := s.Table(2)
	fmt.Fprintf(t, "emulated\t%t, says the host\nverified\t%s\nfirmware API\t%s\n", p.Emulated, cli.Escape(verified),
		apiText(p.api()))
	fmt.Fprintf(t, "chip ID\t%s\nCEK digest\t%s\nCEK signed\t%s\n", id, p.cekDigest(), signed)
	if a := p.address(); a != "" {
		fmt.Fprintf(t, "signed CEK\t%s\n", a)
	}
	return t.Flush()
}
