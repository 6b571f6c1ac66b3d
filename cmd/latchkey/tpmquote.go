package main

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/tpm/quote"
	"github.com/vmlatch/vmlatch/firmware/tpm/seal"
	"github.com/vmlatch/vmlatch/firmware/tpm/verify"
)

func newTPMCredential(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "credential", Usage: "come to know a TPM's attestation key", ArgsUsage: "make IDENTITY | check ANSWER",
		Description: `A TPM's certificate names a key that cannot sign. The challenge shows that the key that signs
quotes is in the same TPM: only that TPM can answer it. For a guest's TPM the certificate is
its host's word (vmlatch tpm ca).

Examples:

   latchguest identity > web.identity                                    # in the guest
   latchkey tpm credential make web.identity --tpm-root tpm-ca.pem --out web.challenge --keep web.pending
   latchguest activate web.challenge                                     # in the guest; prints ANSWER
   latchkey tpm credential check ANSWER --keep web.pending --out web.ak`,
		BashComplete: actions("make", "check"),
		Flags: []urfave.Flag{
			&urfave.StringFlag{Name: "tpm-root", Usage: "make: the CA `FILE` whose TPMs you accept, in PEM"},
			&urfave.StringFlag{Name: "keep", Usage: "what you keep between make and check, `FILE`"},
			&urfave.StringFlag{Name: "out", Usage: "the challenge, or the key: `FILE`"},
		},
		Action: func(c *urfave.Context) error {
			args, err := actionArgs(c, "make", "check")
			if err != nil {
				return err
			}
			if err := cli.Need(c, "keep", "out"); err != nil {
				return err
			}
			if args[0] == "make" {
				return makeChallenge(c, s, args[1])
			}
			return checkAnswer(c, s, args[1])
		},
	}
}

// maxIdentity bounds identities and what belongs to them, in bytes.
const maxIdentity = 64 << 10

func makeChallenge(c *urfave.Context, s *cli.IO, name string) error {
	if err := cli.Need(c, "tpm-root"); err != nil {
		return err
	}
	root, err := readSmall(c.String("tpm-root"))
	if err != nil {
		return cli.Fail(cli.ExitUsage, err, "of a guest's TPM: vmlatch tpm ca > FILE, on its host")
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(root) {
		return cli.Usagef("--tpm-root %s: it has no certificate in PEM", c.String("tpm-root"))
	}
	b, err := s.ReadInput(name, maxIdentity)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	id, err := quote.ParseIdentity(b)
	if err != nil {
		return cli.Fail(cli.ExitUsage, fmt.Errorf("%s: %w", name, err), "in the guest: latchguest identity")
	}
	if err := verify.Certificate(id, roots, time.Now()); err != nil {
		return cli.Fail(cli.ExitRefused, fmt.Errorf("%s: %w", name, err))
	}
	challenge, pending, err := quote.Challenge(rand.Reader, id)
	if err != nil {
		return cli.Fail(cli.ExitRefused, fmt.Errorf("%s: %w", name, err))
	}
	if err := writeToken(s, c.String("keep"), pending); err != nil {
		return err
	}
	if err := writeToken(s, c.String("out"), challenge); err != nil {
		return err
	}
	s.Say("wrote %s for the guest (latchguest activate)", c.String("out"))
	return nil
}

func checkAnswer(c *urfave.Context, s *cli.IO, answer string) error {
	b, err := readSmall(c.String("keep"))
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	pending, err := quote.ParsePending(b)
	if err != nil {
		return cli.Fail(cli.ExitUsage, fmt.Errorf("--keep %s: %w", c.String("keep"), err))
	}
	ak, err := pending.Check(answer)
	if err != nil {
		return cli.Fail(cli.ExitRefused, err)
	}
	if err := writeToken(s, c.String("out"), ak); err != nil {
		return err
	}
	s.Say("wrote %s: quotes of this key are this TPM's", c.String("out"))
	return nil
}

func newTPMQuote(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "quote", Usage: "verify a TPM's quote", ArgsUsage: "QUOTE",
		Description: `It verifies that an attestation key that you know (latchkey tpm credential) has signed these
registers and your challenge, that the event log leads to them, and with --expect or
--firmware that they are the ones you expect. A guest's TPM is its host's, which could have
made all of it up: the verdict says "trust: host", and no secret of a confidential guest is
released for it.

Exit code 0: as expected. 4: refused, with the cause.

Examples:

   latchguest quote --nonce $NONCE > quote.json                          # in the guest
   latchkey tpm quote quote.json --ak web.ak --nonce $NONCE
   latchkey tpm quote quote.json --ak web.ak --nonce $NONCE --expect expected --pcrs 4,7,9 --json`,
		Flags: append(expectedFlags(),
			&urfave.StringFlag{Name: "ak", Usage: "the attestation key `FILE` (latchkey tpm credential check)"},
			&urfave.StringFlag{Name: "nonce", Usage: "your challenge in `HEX`"},
			&urfave.BoolFlag{Name: "json", Usage: "print JSON"},
		),
		Action: func(c *urfave.Context) error {
			args, err := cli.Args(c, "QUOTE")
			if err != nil {
				return err
			}
			if err := cli.Need(c, "ak", "nonce"); err != nil {
				return err
			}
			return runTPMQuote(c, s, args[0])
		},
	}
}

// quoteVerdict is what "tpm quote" prints.
type quoteVerdict struct {
	Schema   string      `json:"schema"`
	Verdict  string      `json:"verdict"`
	Trust    string      `json:"trust"` // always "host"
	Refusal  string      `json:"refusal,omitempty"`
	Bank     string      `json:"bank,omitempty"`
	PCRs     seal.Values `json:"pcrs,omitempty"`
	Expected bool        `json:"expected"` // the registers were compared
	Log      bool        `json:"log"`      // there was a log, which leads to them
	Resets   uint32      `json:"resets"`
	Restarts uint32      `json:"restarts"`
	Clock    uint64      `json:"clock-ms"`
}

func runTPMQuote(c *urfave.Context, s *cli.IO, name string) error {
	nonce, err := hex.DecodeString(c.String("nonce"))
	if err != nil || len(nonce) < quote.MinNonce {
		return cli.Usagef("--nonce: must be %d bytes or more in hex, new for each quote", quote.MinNonce)
	}
	known, err := readSmall(c.String("ak"))
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	ak, err := quote.ParseAK(known)
	if err != nil {
		return cli.Fail(cli.ExitUsage, fmt.Errorf("--ak %s: %w", c.String("ak"), err))
	}
	const most = 4 << 20
	b, err := s.ReadInput(name, most)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	q, err := quote.ParseQuote(b)
	if err != nil {
		return cli.Fail(cli.ExitUsage, fmt.Errorf("%s: %w", name, err), "in the guest: latchguest quote --nonce HEX")
	}
	if err := noBootFlags(c); err != nil {
		return err
	}
	var want *boot
	if c.IsSet("firmware") || c.IsSet("expect") {
		if want, err = readBoot(c, s); err != nil {
			return err
		}
	}
	v := quoteVerdict{Schema: "latchkey.tpm-verdict/1", Verdict: "accepted", Trust: "host", Expected: want != nil}
	got, err := verify.Verify(q, ak, nonce)
	if err == nil {
		v.Bank, v.PCRs, v.Log = q.Bank, q.PCRs, got.Log != nil
		v.Resets, v.Restarts, v.Clock = got.Resets, got.Restarts, got.Clock
		if want != nil {
			err = want.Check(got.Facts)
		}
	}
	if err != nil {
		v.Verdict, v.Refusal = "refused", err.Error()
	}
	if e := showQuote(c, s, &v, want); e != nil {
		return e
	}
	if err != nil {
		return cli.Fail(cli.ExitRefused, err)
	}
	return nil
}

func showQuote(c *urfave.Context, s *cli.IO, v *quoteVerdict, want *boot) error {
	if c.Bool("json") {
		return s.JSON(v)
	}
	if v.Verdict != "accepted" {
		return nil
	}
	what := "the TPM has signed these registers and your challenge"
	if want != nil {
		what += "; PCR " + want.Selection.String() + " are as expected"
		want.tell(s)
	}
	if _, err := fmt.Fprintln(s.Out, "accepted: "+what); err != nil {
		return err
	}
	if want == nil {
		s.Say("nothing was expected of the registers: --expect FILE, or --firmware …")
	}
	if !v.Log {
		s.Say("there is no event log in it")
	}
	_, err := fmt.Fprintln(s.Out, "trust: host: a guest's TPM is its host's, which could have made this up")
	return err
}
