package main

import (
	"encoding/json"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/credential"
	"github.com/vmlatch/vmlatch/firmware/sev/exchange"
	"github.com/vmlatch/vmlatch/launcher"
	"github.com/vmlatch/vmlatch/launcher/plan"
)

func newPlatform(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name:     "platform",
		Usage:    "print what an owner needs of this host to make a session",
		Category: catOpen,
		Description: `JSON: the platform's Diffie-Hellman certificate, its certificate chain and the
chip's id. Nothing in it is secret.

Platforms export the chip's certificate, the CEK, without AMD's signature. The owner gets
the signed one from AMD, or this host puts it into the file: --cek.

Examples:

   vmlatch platform > platform.json
   vmlatch platform --cek cek.cert > platform.json
   vmlatch platform --emulate > platform.json`,
		Flags: hostFlags(emulateFlag(), &urfave.StringFlag{
			Name: "cek", Usage: "the chip's certificate as AMD signed it, `FILE` (latchkey platform show says" +
				" where it is)",
		}),
		Action: func(c *urfave.Context) error {
			if _, err := cli.Args(c); err != nil {
				return err
			}
			h, err := hostConfig(c)
			if err != nil {
				return err
			}
			facts, err := launcher.GatherFacts(c.Context,
				launcher.Config{Host: ownCache(h), Emulate: c.Bool("emulate")}, nil)
			if err != nil {
				return err
			}
			p, err := launcher.QueryPlatform(c.Context, facts)
			if err != nil {
				return err
			}
			if file := c.String("cek"); file != "" {
				b, err := s.ReadInput(file, exchange.MaxFile)
				if err != nil {
					return cli.Fail(cli.ExitUsage, err)
				}
				if err := launcher.WithCEK(p, b); err != nil {
					return err
				}
			}
			return s.JSON(p)
		},
	}
}

func newMeasure(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name:         "measure",
		Usage:        "print the launch measurement for the guest's owner",
		ArgsUsage:    "NAME",
		Category:     catOpen,
		BashComplete: completeAlive,
		Description: `JSON: the platform's measurement and what is needed to check it. The owner
gives it to "latchkey verify".

Example:

   vmlatch measure guest > measurement.json`,
		Flags: hostFlags(),
		Action: func(c *urfave.Context) error {
			m, err := attachArg(c, s)
			if err != nil {
				return err
			}
			defer m.Close()
			measurement, err := m.Measure(c.Context)
			if err != nil {
				return err
			}
			return s.JSON(measurement)
		},
	}
}

func newInject(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name:         "inject",
		Usage:        "hand the owner's secret packet to the platform",
		ArgsUsage:    "NAME PACKET",
		Category:     catOpen,
		BashComplete: completeAlive,
		Description: `The platform authenticates the packet with the owner's key and decrypts it into
guest memory; this host sees only the encrypted form. An accepted packet opens
a latch that waits for a secret. "-" reads the packet from standard input, credential:NAME
one that the service manager hands over.

Example:

   vmlatch inject guest packet.json`,
		Flags: hostFlags(),
		Action: func(c *urfave.Context) error {
			got, err := cli.Args(c, "NAME", "PACKET")
			if err != nil {
				return err
			}
			file, err := credential.Path(got[1])
			if err != nil {
				return cli.Fail(cli.ExitUsage, err)
			}
			b, err := s.ReadInput(file, exchange.MaxFile)
			if err != nil {
				return cli.Fail(cli.ExitUsage, err)
			}
			packet, err := exchange.ParsePacket(b)
			if err != nil {
				return err
			}
			m, err := attach(c, s, got[0])
			if err != nil {
				return err
			}
			defer m.Close()
			if err := m.Inject(c.Context, packet); err != nil {
				return err
			}
			rec := m.Record()
			s.Say("%s: the platform accepted the secret%s", rec.Name, label(rec.Emulated))
			s.Hint("vmlatch release %s", rec.Name)
			return nil
		},
	}
}

func newRelease(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name:         "release",
		Usage:        "let a held VM run",
		ArgsUsage:    "NAME",
		Category:     catOpen,
		BashComplete: completeAlive,
		Description:  "Refused while the latch is closed.\n\nExample:\n\n   vmlatch release guest",
		Flags:        hostFlags(),
		Action: func(c *urfave.Context) error {
			m, err := attachArg(c, s)
			if err != nil {
				return err
			}
			defer m.Close()
			if err := m.Release(c.Context); err != nil {
				return err
			}
			rec := m.Record()
			if rec.Latch.Until == plan.UntilNothing {
				s.Say("%s: running%s; its launch was NOT verified (until = \"nothing\")", rec.Name, label(rec.Emulated))
			} else {
				s.Say("%s: running%s", rec.Name, label(rec.Emulated))
			}
			return nil
		},
	}
}

func newQMP(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name:         "qmp",
		Usage:        "run one QMP command",
		ArgsUsage:    "NAME COMMAND [JSON]",
		Category:     catHost,
		BashComplete: completeAlive,
		Description: `The result is printed as JSON. What a command changes behind vmlatch's back is not
recorded. While the latch is closed the commands that let a guest run are refused,
and of confidential guests always those that migrate, suspend or dump them; that
guards against slips, for whoever has the monitor has the VM.

Examples:

   vmlatch qmp guest query-status
   vmlatch qmp guest qom-list '{"path": "/machine"}'`,
		Flags: hostFlags(),
		Action: func(c *urfave.Context) error {
			names := []string{"NAME", "COMMAND"}
			if c.NArg() > 2 {
				names = append(names, "JSON")
			}
			got, err := cli.Args(c, names...)
			if err != nil {
				return err
			}
			var args json.RawMessage
			if len(got) > 2 {
				if !json.Valid([]byte(got[2])) {
					return cli.Usagef("%q is not JSON", got[2])
				}
				args = json.RawMessage(got[2])
			}
			m, err := attach(c, s, got[0])
			if err != nil {
				return err
			}
			defer m.Close()
			if err := m.CheckCommand(got[1], args); err != nil {
				return err
			}
			conn, err := m.QMP(c.Context)
			if err != nil {
				return err
			}
			var ret json.RawMessage
			var sent any
			if args != nil {
				sent = args
			}
			if err := conn.Execute(c.Context, got[1], sent, &ret); err != nil {
				return err
			}
			return s.JSON(ret)
		},
	}
}
