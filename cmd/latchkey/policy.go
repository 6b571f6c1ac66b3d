package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/evidence"
	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/evidence/policy"
	"github.com/vmlatch/vmlatch/firmware/tdx/ccel"
	"github.com/vmlatch/vmlatch/firmware/tdx/rtmr"
)

func newPolicy(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "policy", Usage: "check a policy file, and show which digests it accepts",
		ArgsUsage: "[check | rtmr0] FILE",
		Description: `"check FILE" reads a policy and works out its digests from your own copies of what the
guest boots. It also says what the policy leaves open, and refuses a command line by which
the guest would ask its broker in vain. "latchkey help appliance-policy" describes the file.

"rtmr0 LOG" makes a profile for rtmr0 = "profile:NAME" from the event log of a boot that
you trust: the exact sequence of the firmware's measurements, with holes for the host's
ACPI tables. With --quote it must be the log of that boot's quote.

Exit code 0: the policy can be used. 2: it cannot; the key is named. 4: the log is damaged,
or that of another boot than the quote's.

Examples:

   latchkey policy check appliance.toml
   latchkey policy check appliance.toml --key keys
   latchkey policy rtmr0 CCEL --quote quote.bin > appliance.rtmr0.json`,
		Flags: []urfave.Flag{
			&urfave.StringFlag{
				Name:  "quote",
				Usage: "rtmr0: the quote `FILE` of the same boot, which you have verified",
			},
			&urfave.StringSliceFlag{
				Name:  "key",
				Usage: "check: the broker's `KEY`, a file, its directory, or ed25519:…, that guests must name",
			},
			deviceFlag(),
			&urfave.BoolFlag{Name: "json", Usage: "print JSON"},
		},
		BashComplete: actions("check", "rtmr0"),
		Action: func(c *urfave.Context) error {
			args, err := actionArgs(c, "check", "rtmr0")
			if err != nil {
				return err
			}
			if args[0] == "check" && c.IsSet("quote") {
				return cli.Usagef("--quote is for rtmr0")
			}
			if args[0] == "rtmr0" && c.IsSet("key") {
				return cli.Usagef("--key is for check")
			}
			if args[0] == "check" {
				return checkPolicy(c, s, args[1])
			}
			return makeHardware(c, s, args[1])
		},
	}
}

func checkPolicy(c *urfave.Context, s *cli.IO, file string) error {
	f, err := policy.Read(file)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err, `"latchkey help appliance-policy" describes the file`)
	}
	digests, err := f.Digests()
	if err != nil {
		return cli.Fail(cli.ExitUsage, fmt.Errorf("%s: %w", file, err))
	}
	if root := f.Root(); root != "" {
		if _, err := readRoots(root); err != nil {
			return cli.Fail(cli.ExitUsage, fmt.Errorf("%s: emulated.root: %w", file, err))
		}
	}
	if f.TDX != nil { // a profile that is missing is found now
		r, err := f.RTMR0()
		if err == nil {
			_, err = evidence.HardwareOf(f, r)
		}
		if err != nil {
			return cli.Fail(cli.ExitUsage, fmt.Errorf("%s: %w", file, err))
		}
	}
	line, err := f.Cmdline()
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	keys, err := pins(c)
	if err != nil {
		return err
	}
	if err := f.CheckWords(line, keys...); err != nil {
		return cli.Fail(cli.ExitUsage, fmt.Errorf("%s: %w", file, err),
			`"latchkey broker key DIR" prints the words of a broker's guests`)
	}
	open := f.Open(line)
	for i := range f.Release {
		name, err := f.Path(&f.Release[i])
		if err == nil && name != "" {
			_, err = os.Stat(name)
		}
		if err != nil { // the broker may run elsewhere
			open = append(open, fmt.Sprintf("the secret %s is not here: %v", f.Release[i].Secret, err))
		}
	}
	if c.Bool("json") {
		return s.JSON(map[string]any{
			"schema": "latchkey.policy-check/1", "name": f.Name, "emulated": f.Emulated != nil,
			"digests": digests, "open": open,
		})
	}
	t := s.Table(2)
	for _, d := range digests {
		fmt.Fprintf(
			t,
			"%s\t%s\t%s\t%s\n",
			d.Technology,
			d.Register,
			d.Hex,
			cli.Escape(strings.Join(d.From, ", ")),
		)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, o := range open {
		s.Say("warning: %s", o)
	}
	return nil
}

// pins are the public keys that --key names.
func pins(c *urfave.Context) (keys []exchange.Key, err error) {
	for _, text := range c.StringSlice("key") {
		k, err := exchange.ParseKey(strings.TrimPrefix(text, "latch.key="))
		if err != nil {
			if k, err = pinOf(text, c.String("tpm")); err != nil {
				return nil, err
			}
		}
		keys = append(keys, k)
	}
	return keys, nil
}

func makeHardware(c *urfave.Context, s *cli.IO, file string) error {
	b, err := s.ReadInput(file, ccel.MaxSize)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	l, err := ccel.Parse(b)
	if err != nil {
		return refused(fmt.Errorf("%s: %w", file, err))
	}
	if name := c.String("quote"); name != "" {
		e, err := evidenceOf(s, name)
		if err != nil {
			return err
		}
		if e.Quote == nil {
			return cli.Usagef("--quote %s: it is a report of SEV-SNP", name)
		}
		if err := l.Match(e.Quote.Body.RTMR); err != nil {
			return refused(fmt.Errorf("%s: %w", file, err))
		}
	} else {
		s.Say("warning: the log was held against no quote (--quote): whoever wrote it chose the profile")
	}
	h, err := rtmr.NewHardware(l)
	if err != nil {
		return cli.Fail(cli.ExitRefused, fmt.Errorf("%s: %w", file, err))
	}
	s.Say("%d measurements; left open for the host's ACPI tables: %s", len(h.Events),
		cmp.Or(strings.Trim(fmt.Sprint(h.Holes()), "[]"), "none"))
	out, err := json.MarshalIndent(h, "", " ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(s.Out, "%s\n", out)
	return err
}
