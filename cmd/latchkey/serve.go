package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/cmd/latchkey/broker"
	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
)

func newServe(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "serve", Usage: "run a broker: guests prove themselves to it and get their secrets",
		Description: `The broker judges evidence of SEV-SNP and TDX guests, and measurements of SEV and SEV-ES
launches, by your policies, and gives the secrets of a policy to a guest that it accepts.
Messages protect themselves: no TLS is needed, and the host may carry them. Run it on a
machine that you trust.

Every decision is a line of DIR/audit.jsonl before it is answered ("latchkey audit
verify"). SIGHUP reads policies and bundle again. A person decides on secrets of mode
"ask" and "first-ask": "latchkey requests", or the page of --approve.

Without --listen the sockets that systemd passes are used. "latchkey help unattended" tells more.

Exit code 0: it was stopped. 2: key, policy, bundle or address cannot be used. 4: the
state was changed or has gone back.

Examples:

   latchkey serve --key keys --listen tcp:0.0.0.0:8440 --policy policies --bundle bundle.json
   latchkey serve --key keys --listen unix:broker.sock --policy appliance.toml \
      --state state --approve 127.0.0.1:8441
   latchkey serve --key keys --listen tcp:127.0.0.1:8440 --policy appliance.toml --dry-run`,
		Flags: []urfave.Flag{
			&urfave.StringSliceFlag{
				Name:  "key",
				Usage: "key `FILE`, or its directory (latchkey broker); a second one while keys change",
			},
			&urfave.StringSliceFlag{Name: "listen", Usage: "`ADDRESS`: tcp:HOST:PORT or unix:PATH"},
			&urfave.StringSliceFlag{Name: "policy", Usage: "policy `FILE`, or a directory of them"},
			&urfave.StringFlag{Name: "bundle", Usage: "certificates and lists `FILE` (latchkey bundle)"},
			stateFlag(), deviceFlag(),
			&urfave.StringFlag{
				Name:  "approve",
				Usage: "show the approvals page at `ADDRESS`: 127.0.0.1:PORT or unix:PATH",
			},
			&urfave.StringSliceFlag{
				Name:  "approve-host",
				Usage: "a further `HOST:PORT` under which the page may be opened, as by a tunnel",
			},
			&urfave.BoolFlag{
				Name:  "dry-run",
				Usage: "judge and say what would be given, but give and record nothing",
			},
			&urfave.BoolFlag{
				Name:  "accept-audit-loss",
				Usage: "go on after the audit was lost or changed; it will say so",
			},
		},
		Action: func(c *urfave.Context) error { return runServe(c, s) },
	}
}

// server is what "serve" runs.
type server struct {
	s         *cli.IO
	c         *urfave.Context
	keys      []brokerKey
	broker    *broker.Broker
	state     string
	listeners []net.Listener
	page      *broker.Page
	pageAt    net.Listener
	control   net.Listener
}

func runServe(c *urfave.Context, s *cli.IO) error {
	if _, err := cli.Args(c); err != nil {
		return err
	}
	if err := errors.Join(noEmptyOption(c), cli.Need(c, "key", "policy")); err != nil {
		return err
	}
	manager, passed, err := theService()
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	v := &server{s: s.Shared(), c: c}
	defer v.close()
	if err := v.open(); err != nil {
		return err
	}
	if err := v.listen(passed); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(c.Context, os.Interrupt, terminate)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	go v.broker.ServeControl(v.control, v.page)
	if v.page != nil {
		srv := v.page.Server()
		go func() { _ = srv.Serve(v.pageAt) }()
		defer srv.Close()
		if os.Getenv("NOTIFY_SOCKET") != "" { // a journal has more readers than a terminal
			v.s.Say("approvals at %s: latchkey requests --page prints a link", v.pageAt.Addr())
		} else {
			v.s.Say("approvals (the link works once): %s", v.page.Link())
		}
	}
	hup := make(chan os.Signal, 1)
	notifyReload(hup) // before it says that it is ready
	defer signal.Stop(hup)
	go v.reloads(ctx, manager, hup)
	for _, l := range v.listeners {
		v.s.Say("listening on %s; guests pin latch.key=%s", l.Addr(), v.broker.Key())
	}
	if err := manager.ready(ctx); err != nil {
		return err
	}
	return v.broker.Serve(ctx, v.listeners...)
}

func (v *server) open() (err error) {
	for _, name := range v.c.StringSlice("key") {
		k, err := readBrokerKey(name, v.c.String("tpm"))
		if err != nil {
			return err
		}
		v.keys = append(v.keys, k)
	}
	if v.state, err = brokerState(v.c); err != nil {
		return err
	}
	rules, err := v.rules()
	if err != nil {
		return err
	}
	for _, w := range rules.Warnings {
		v.s.Say("warning: %s", w)
	}
	config := broker.Config{
		Rules: rules, State: v.state, AcceptLoss: v.c.Bool("accept-audit-loss"), DryRun: v.c.Bool("dry-run"),
		Log: v.s.Say,
	}
	for _, k := range v.keys {
		config.Keys = append(config.Keys, ed25519.PrivateKey(k.private))
		if config.HostTrusted = k.trusting; k.trusting != v.keys[0].trusting {
			return cli.Usagef("--key: one key is for guests that trust their hosts, and the other is not")
		}
	}
	v.broker, err = broker.New(config)
	switch {
	case errors.Is(err, broker.ErrAudit):
		return cli.Fail(
			cli.ExitRefused,
			err,
			"a person, or a restored backup, has taken decisions back: put the newest"+
				" audit.jsonl and state.json in their place",
			"--accept-audit-loss goes on without: guests that were served"+
				" may be served again",
		)
	case errors.Is(err, broker.ErrInUse):
		return cli.Fail(cli.ExitFailure, err, "one key has one state directory and one process")
	case errors.Is(err, broker.ErrConfig):
		return cli.Fail(cli.ExitUsage, err)
	}
	return err
}

// rules reads policies and bundle.
func (v *server) rules() (*broker.Rules, error) {
	var pins []exchange.Key
	for _, k := range v.keys {
		pins = append(pins, k.public)
	}
	r, err := broker.Load(v.c.StringSlice("policy"), v.c.String("bundle"), pins...)
	if err != nil {
		return nil, cli.Fail(cli.ExitUsage, err, `"latchkey policy check FILE" checks a policy`)
	}
	return r, nil
}

// listen opens the sockets. A socket of unix that has no listener any more is replaced.
func (v *server) listen(passed map[string][]net.Listener) error {
	for name, list := range passed {
		if name == "approve" {
			if len(list) > 1 || v.c.String("approve") != "" {
				return cli.Usagef("the approvals page has one address, and systemd passes another")
			}
			v.pageAt = list[0]
			continue
		}
		v.listeners = append(v.listeners, list...)
	}
	for _, text := range v.c.StringSlice("listen") {
		l, err := listenAt(text, 0o666) // messages protect themselves
		if err != nil {
			return err
		}
		v.listeners = append(v.listeners, l)
	}
	if len(v.listeners) == 0 {
		return cli.Fail(
			cli.ExitUsage,
			errors.New("there is no address to listen at"),
			"--listen tcp:HOST:PORT or unix:PATH",
		)
	}
	var err error
	if text := v.c.String("approve"); text != "" {
		if !strings.HasPrefix(text, "unix:") {
			text = "tcp:" + strings.TrimPrefix(text, "tcp:")
		}
		if v.pageAt, err = listenAt(text, 0o600); err != nil {
			return err
		}
	}
	if v.pageAt != nil {
		if v.page, err = broker.NewPage(v.broker, v.pageAt.Addr(), v.c.StringSlice("approve-host")...); err != nil {
			return cli.Fail(cli.ExitUsage, err)
		}
	}
	v.control, err = listenAt("unix:"+filepath.Join(v.state, broker.ControlSocket), 0o600)
	return err
}

func listenAt(text string, mode fs.FileMode) (net.Listener, error) {
	network, addr, ok := strings.Cut(text, ":")
	if !ok || network != "tcp" && network != "unix" || addr == "" {
		return nil, cli.Usagef("%q: an address is tcp:HOST:PORT or unix:PATH", text)
	}
	if network == "unix" {
		if err := sweepSocket(addr); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen(network, addr)
	if err == nil && network == "unix" {
		if err = os.Chmod(addr, mode); err != nil {
			_ = l.Close()
		}
	}
	if err != nil {
		return nil, cli.Fail(cli.ExitUsage, fmt.Errorf("listen at %s: %w", text, err))
	}
	return l, nil
}

// sweepSocket removes a socket that a killed broker has left behind.
func sweepSocket(path string) error {
	if len(path) > 100 { // sun_path has 108 bytes on Linux, and fewer elsewhere
		return cli.Usagef("%s: the path of a socket may have 100 bytes", path)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&fs.ModeSocket == 0 {
		return nil // another kind of file makes the bind fail
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		_ = conn.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) { // also one that is too busy to answer
		return cli.Fail(cli.ExitFailure, fmt.Errorf("%s: another program listens there", path))
	}
	return os.Remove(path)
}

// reloads reads policies and bundle again at each SIGHUP. What cannot be used changes nothing.
func (v *server) reloads(ctx context.Context, m service, hup <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
		}
		r, err := v.rules()
		if err == nil {
			err = v.broker.Reload(r)
		}
		if err != nil {
			v.s.Fail(fmt.Errorf("reload: %w; what was loaded before still counts", err))
			m.say("serving; the last reload failed")
			continue
		}
		for _, w := range r.Warnings {
			v.s.Say("warning: %s", w)
		}
		v.s.Say("read again: policies and bundle")
		m.say("serving")
	}
}

func (v *server) close() {
	for _, l := range append(v.listeners, v.control, v.pageAt) {
		if l != nil {
			_ = l.Close()
		}
	}
	if v.broker != nil {
		_ = v.broker.Close()
	}
	for _, k := range v.keys {
		clear(k.private)
	}
}
