package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/cmd/latchkey/broker"
	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/xdg"
)

func newBroker(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "broker", Usage: "make the key of a broker, or print what guests pin of it",
		ArgsUsage: "[init | key] DIR",
		Description: `A broker ("latchkey serve") signs its answers with a key that its guests know from their
measured command line, so a new key is a new command line and a new digest.

"init DIR" makes DIR/broker.key (only you can read it) and prints the words for the guest's
command line. With --in-tpm the file is of use only with your own TPM, which "serve" needs
then. --host-trusted makes one for guests that prove themselves by a TPM that their host has
made: no other guest may pin it.

"key DIR" prints the words again. To change a key, make a second directory and give both to
"serve" until every guest has the new command line; after a theft, first remove the old
digests from your policies.

Examples:

   latchkey broker init keys
   latchkey broker init keys --in-tpm
   latchkey broker init trusting --host-trusted
   latchkey broker key keys --json`,
		BashComplete: actions("init", "key"),
		Flags: []urfave.Flag{
			&urfave.BoolFlag{Name: "in-tpm", Usage: "init: seal the key to your own TPM"}, deviceFlag(),
			&urfave.BoolFlag{
				Name:  "host-trusted",
				Usage: "init: for guests that trust their hosts ([vtpm]), and no others",
			},
			&urfave.BoolFlag{Name: "json", Usage: "print JSON"},
		},
		Action: func(c *urfave.Context) error {
			args, err := actionArgs(c, "init", "key")
			if err != nil {
				return err
			}
			return runBroker(c, s, args[0], args[1])
		},
	}
}

// keyFile is where a broker's key lies in its directory.
const keyFile = "broker.key"

func runBroker(c *urfave.Context, s *cli.IO, action, dir string) error {
	name := filepath.Join(dir, keyFile)
	if action == "init" {
		if err := writeKey(c, dir, name); err != nil {
			return err
		}
		whoever := "whoever has it"
		if c.Bool("in-tpm") {
			whoever = "whoever has it and your TPM"
		}
		s.Say("wrote %s: %s can give your guests secrets of their own choice", name, whoever)
	}
	pin, err := pinOf(name, c.String("tpm"))
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return s.JSON(map[string]any{"schema": "latchkey.broker/1", "key": pin.String(), "file": name})
	}
	_, err = fmt.Fprintf(s.Out, "latch.key=%s\n", pin)
	if err == nil && action == "init" {
		s.Hint("the guest's command line needs it, and latch.name=POLICY latch.broker=port")
	}
	return err
}

func writeKey(c *urfave.Context, dir, name string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	make := broker.NewKey
	if c.Bool("host-trusted") {
		make = broker.NewTrustingKey
	}
	b, _, err := make()
	if err != nil {
		return err
	}
	defer clear(b)
	if c.Bool("in-tpm") {
		if b, err = keep(keyFile, b, c.String("tpm")); err != nil {
			return adviseTPM(err)
		}
	}
	out, err := cli.PrepareSecret(name)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	defer out.Discard()
	err = out.CommitNew(b)
	if errors.Is(err, fs.ErrExist) {
		return cli.Fail(cli.ExitUsage, fmt.Errorf("%s exists", name), "guests that pin it would believe no other key",
			"make a further key in a directory of its own")
	}
	return err
}

// readBrokerKey reads a broker's key, from its file or the directory that holds it. One that is
// sealed needs the TPM that device names.
func readBrokerKey(name, device string) (k brokerKey, err error) {
	if info, err := os.Stat(name); err == nil && info.IsDir() {
		name = filepath.Join(name, keyFile)
	}
	f, err := os.Open(name)
	if err != nil {
		return k, cli.Fail(cli.ExitUsage, err, `"latchkey broker init DIR" makes one`)
	}
	defer f.Close()
	if err := checkPrivate(f); err != nil && !isCredential(name) {
		return k, err
	}
	b, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return k, cli.Fail(cli.ExitUsage, err)
	}
	defer clear(b)
	if isKept(b) {
		if b, err = unkeep(b, device); err != nil {
			return k, adviseTPM(fmt.Errorf("%s: %w", name, err))
		}
		defer clear(b)
	}
	private, err := broker.ParseKey(b)
	if err != nil {
		return k, cli.Fail(cli.ExitUsage, fmt.Errorf("%s: %w", name, err))
	}
	return brokerKey{private, exchange.Key(bytes.Clone(private[32:])), broker.TrustsHosts(b)}, nil
}

// isCredential reports whether a service manager has handed a file over, in a directory that only
// the service can read, with modes of its own.
func isCredential(name string) bool {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	return filepath.IsAbs(dir) && filepath.Dir(filepath.Clean(name)) == filepath.Clean(dir)
}

// brokerKey is a broker's key and its public half.
type brokerKey struct {
	private  []byte
	public   exchange.Key
	trusting bool // for guests that trust their hosts
}

func pinOf(name, device string) (exchange.Key, error) {
	k, err := readBrokerKey(name, device)
	clear(k.private)
	return k.public, err
}

// brokerState is where a broker keeps its state.
func brokerState(c *urfave.Context) (string, error) {
	if dir := c.String("state"); dir != "" {
		return dir, nil
	}
	if dir := os.Getenv("STATE_DIRECTORY"); dir != "" { // of systemd
		return dir, nil
	}
	if os.Geteuid() == 0 {
		return "/var/lib/latchkey", nil
	}
	dir, err := xdg.StateDir()
	if err != nil {
		return "", cli.Fail(cli.ExitUsage, err, "name it: --state DIR")
	}
	return filepath.Join(dir, "latchkey"), nil
}

func stateFlag() urfave.Flag {
	return &urfave.StringFlag{
		Name:  "state",
		Usage: "the broker's state `DIR` (default: /var/lib/latchkey for root, else ~/.local/state/latchkey)",
	}
}

// askBroker sends a command to the running broker.
func askBroker(c *urfave.Context, command *broker.Command) (*broker.Reply, error) {
	dir, err := brokerState(c)
	if err != nil {
		return nil, err
	}
	r, err := broker.Ask(c.Context, dir, command)
	var no *net.OpError
	if errors.As(err, &no) && no.Op == "dial" {
		return nil, cli.Fail(cli.ExitFailure, fmt.Errorf("no broker is running with the state %s: %w", dir, no.Err),
			"start it: latchkey serve; or name its state: --state DIR")
	}
	return r, err
}

func newRequests(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "requests", Usage: "show what waits for your approval at a running broker",
		Description: `Only requests whose evidence was verified, and that a policy lets you decide on (mode
"ask" or "first-ask"), wait. An approval is for one launch, chip, digest and set of
secrets; it lasts ten minutes.

The head of the audit, kept elsewhere, shows later that no line was removed:
"latchkey audit verify --head".

Examples:

   latchkey requests
   latchkey requests --json
   latchkey requests --page         # a link to the approvals page (serve --approve)`,
		Flags: []urfave.Flag{
			stateFlag(), &urfave.BoolFlag{Name: "json", Usage: "print JSON"},
			&urfave.BoolFlag{Name: "page", Usage: "print a link to the approvals page; it works once"},
		},
		Action: func(c *urfave.Context) error {
			if _, err := cli.Args(c); err != nil {
				return err
			}
			if c.Bool("page") {
				r, err := askBroker(c, &broker.Command{Do: broker.DoPage})
				if err == nil {
					_, err = fmt.Fprintln(s.Out, r.Page)
				}
				return err
			}
			r, err := askBroker(c, &broker.Command{Do: broker.DoStatus})
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return s.JSON(r)
			}
			return printRequests(s, r)
		},
	}
}

func printRequests(s *cli.IO, r *broker.Reply) error {
	t := s.Table(2)
	if len(r.Requests) > 0 {
		fmt.Fprintf(t, "REQUEST\tPOLICY\tSECRETS\tTECHNOLOGY\tCHIP\tSINCE\tLAST ASKED\tANSWER\n")
	}
	for _, x := range r.Requests {
		technology, chip, answer := x.Technology, x.Chip, x.Answer
		if x.Emulated {
			technology += " (emulated)"
		}
		if x.Trust != "" {
			technology += " (trust: " + x.Trust + ")"
		}
		if chip == "" {
			chip = "(no name)"
		}
		if answer == "" {
			answer = "waits"
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", x.Number, x.Policy, strings.Join(x.Secrets, ","),
			technology, chip[:min(len(chip), 16)], x.Since.Local().Format(time.DateTime),
			x.Seen.Local().Format(time.TimeOnly), answer)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, x := range r.Requests {
		s.Say("request %d: %s", x.Number, strings.Join(x.Changed, "; "))
	}
	if len(r.Requests) == 0 {
		s.Say("nothing waits; broker %s serves %s", r.Broker, strings.Join(r.Policies, ", "))
	}
	s.Say("audit head: %d:%s", r.Head.Seq, r.Head.Hash)
	return nil
}

func newDecision(s *cli.IO, do, usage, help string) *urfave.Command {
	return &urfave.Command{
		Name: do, Usage: usage, ArgsUsage: "REQUEST",
		Description: help + `

"latchkey requests" shows the numbers.

Example:

   latchkey ` + do + ` 7`,
		Flags: []urfave.Flag{stateFlag()},
		Action: func(c *urfave.Context) error {
			args, err := cli.Args(c, "REQUEST")
			if err != nil {
				return err
			}
			var n uint64
			if _, err := fmt.Sscanf(args[0], "%d", &n); err != nil || fmt.Sprint(n) != args[0] {
				return cli.Usagef("REQUEST must be a number, as latchkey requests shows it")
			}
			r, err := askBroker(c, &broker.Command{Do: broker.DoStatus})
			if err != nil {
				return err
			}
			i := slices.IndexFunc(r.Requests, func(x *broker.Request) bool { return x.Number == n })
			if i >= 0 && r.Requests[i].Answer != "" {
				return fmt.Errorf("request %d is %s already", n, r.Requests[i].Answer)
			}
			if i < 0 {
				return cli.WithHint(fmt.Errorf("request %d: %w", n, broker.ErrNoRequest),
					"latchkey requests shows those that wait")
			}
			x := r.Requests[i]
			if _, err := askBroker(c, &broker.Command{Do: do, Request: n, Shown: x.Shown()}); err != nil {
				return cli.WithHint(fmt.Errorf("request %d: %w", n, err), "latchkey requests shows those that wait")
			}
			s.Say(
				"request %d: %s: %s for %s on %s",
				n,
				map[string]string{"approve": "approved", "deny": "denied"}[do],
				strings.Join(x.Secrets, ", "),
				x.Policy,
				x.Technology,
			)
			return nil
		},
	}
}

func newAudit(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "audit", Usage: "verify a broker's audit log", ArgsUsage: "verify [FILE]",
		Description: `Each line of the log holds the hash of the line before. A line that was changed, added or
removed between others is found. That the last lines were removed is shown by the
broker's state, unless that was put back too; a head that you kept elsewhere shows it
always: --head SEQ:HASH, as "latchkey requests" prints it.

Exit code 0: the log is whole. 4: it is not; the line is named.

Examples:

   latchkey audit verify
   latchkey audit verify audit.jsonl --head 42:9f86d081884c7d65…`,
		BashComplete: actions("verify"),
		Flags: []urfave.Flag{
			stateFlag(), &urfave.StringFlag{Name: "head", Usage: "the log must hold this line, `SEQ:HASH`"},
			&urfave.BoolFlag{Name: "json", Usage: "print JSON"},
		},
		Action: func(c *urfave.Context) error { return runAudit(c, s) },
	}
}

func runAudit(c *urfave.Context, s *cli.IO) error {
	if err := noEmptyOption(c); err != nil {
		return err
	}
	if c.Args().First() != "verify" || c.NArg() > 2 {
		_, err := cli.Args(c, "verify", "FILE")
		return err
	}
	name := c.Args().Get(1)
	var heads []broker.Head
	if name == "" {
		dir, err := brokerState(c)
		if err != nil {
			return err
		}
		name = filepath.Join(dir, "audit.jsonl")
		known, err := broker.Known(dir) // before the log is read: a running broker writes it later
		if err != nil {
			return cli.Fail(cli.ExitRefused, fmt.Errorf("%s: %w", dir, err))
		}
		heads = append(heads, known)
	} else if c.IsSet("state") {
		return cli.Usagef("--state and FILE: one of them")
	}
	if text := c.String("head"); text != "" {
		n, h, ok := strings.Cut(text, ":")
		seq, err := strconv.ParseUint(n, 10, 64)
		if err != nil || seq == 0 || !ok || !exchange.IsSHA256(h) {
			return cli.Usagef("--head: must be SEQ:HASH, as latchkey requests prints it")
		}
		heads = append(heads, broker.Head{Seq: seq, Hash: h})
	}
	f, err := os.Open(name)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	defer f.Close()
	counts := map[string]int{}
	head, _, err := broker.ReadAudit(f, func(e *broker.Event) error {
		counts[e.Event]++
		return nil
	}, heads...)
	if err != nil {
		return cli.Fail(cli.ExitRefused, fmt.Errorf("%s: %w", name, err))
	}
	if c.Bool("json") {
		return s.JSON(map[string]any{"schema": "latchkey.audit/1", "head": head, "events": counts})
	}
	_, err = fmt.Fprintf(
		s.Out,
		"%s: whole, %s; head %d:%s\n",
		cli.Escape(name),
		cli.Count(int(head.Seq), "line"),
		head.Seq,
		head.Hash,
	)
	return err
}
