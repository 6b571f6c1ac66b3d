package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence"
	"github.com/vmlatch/vmlatch/firmware/evidence/bundle"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
	"github.com/vmlatch/vmlatch/integration/asker"
)

// brokerRequests are asked in a round, so many at once as the broker takes before it says "busy".
const (
	brokerRequests = 256
	brokerAtOnce   = 48
)

// broker times releases of the broker's program against the verification that each needs, both by
// all processors.
func (b *bench) broker() (err error) {
	dir := filepath.Join(b.work, "broker")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	platform := filepath.Join(dir, "platform")
	run := func(name string, args ...string) (string, error) {
		cmd := exec.Command(filepath.Join(b.bin, name), args...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "SWTEE_PLATFORM="+platform)
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil {
			err = fmt.Errorf("%s %s: %w: %s", name, args[0], err, &errs)
		}
		return string(out), err
	}
	pin, err1 := run("latchkey", "broker", "init", "keys")
	root, err2 := run("swtee", "root")
	_, err3 := run("swtee", "collateral", "--out", "parts")
	err4 := os.WriteFile(filepath.Join(dir, "root.pem"), []byte(root), 0o600)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	if _, err := run("latchkey", "bundle", "add", "bundle.json", "--trust-root", "root.pem", "parts/amd-crl.der",
		"parts/vcek.der"); err != nil {
		return err
	}
	first, err := asker.New(platform, strings.TrimSpace(pin))
	if err != nil {
		return err
	}
	head, err := first.Policy()
	if err != nil {
		return err
	}
	for name, text := range map[string]string{
		"secret": "a secret",
		"policy.toml": head +
			"[[release]]\nsecret = \"disk\"\nfile = \"secret\"\nmode = \"repeat\"\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	socket := filepath.Join(dir, "socket")
	serve := exec.Command(filepath.Join(b.bin, "latchkey"), "serve", "--key", "keys", "--policy", "policy.toml",
		"--bundle", "bundle.json", "--state", "state", "--listen", "unix:"+socket)
	serve.Dir = dir
	said, err := serve.StderrPipe()
	if err != nil {
		return err
	}
	if err := serve.Start(); err != nil {
		return err
	}
	defer func() {
		_ = serve.Process.Kill()
		_ = serve.Wait()
	}()
	for r := bufio.NewReader(said); ; {
		line, err := r.ReadString('\n')
		if err != nil {
			return fmt.Errorf("latchkey serve: %w", err)
		}
		if strings.Contains(line, "listening on") {
			go func() { _, _ = io.Copy(io.Discard, r) }()
			break
		}
	}
	var releases, floors []time.Duration
	for range max(1, b.rounds/4) {
		release, floor, err := brokerRound(dir, platform, strings.TrimSpace(pin), socket)
		if err != nil {
			return err
		}
		releases, floors = append(releases, release), append(floors, floor)
	}
	b.row(fmt.Sprintf("a release, %d at once, to its verification", brokerAtOnce), median(releases), median(floors),
		medianRatio(releases, floors), "< 2")
	return nil
}

// brokerRound asks at once, and verifies the same reports in this process.
func brokerRound(dir, platform, pin, socket string) (release, floor time.Duration, err error) {
	var guests []*asker.Asker
	var lines, reports [][]byte
	for range brokerRequests {
		a, err := asker.New(platform, pin)
		if err != nil {
			return 0, 0, err
		}
		defer a.Close()
		if err := a.Dial(socket); err != nil {
			return 0, 0, err
		}
		data, err := a.Challenged()
		if err != nil {
			return 0, 0, err
		}
		b, err := a.Report(data)
		if err != nil {
			return 0, 0, err
		}
		line, err := a.Request(b, nil, nil)
		if err != nil {
			return 0, 0, err
		}
		guests, lines, reports = append(guests, a), append(lines, line), append(reports, b)
	}
	errs := make([]error, len(guests))
	answers := make([][]byte, len(guests))
	atOnce := func(do func(i int) error) time.Duration {
		var all sync.WaitGroup
		gate := make(chan struct{}, brokerAtOnce)
		begin := time.Now()
		for i := range guests {
			gate <- struct{}{}
			all.Go(func() {
				errs[i] = errors.Join(errs[i], do(i))
				<-gate
			})
		}
		all.Wait()
		return time.Since(begin) / brokerRequests
	}
	release = atOnce(func(i int) (err error) {
		answers[i], err = guests[i].Say(lines[i])
		return err
	})
	for i, a := range guests { // untimed: a guest opens it on a machine of its own
		answer, err := a.Answer(answers[i])
		if err == nil && answer.Denial != nil {
			err = fmt.Errorf("the broker denies: %s", answer.Denial.Reason)
		}
		errs[i] = errors.Join(errs[i], err)
	}
	verify, err := verifier(dir)
	if err != nil {
		return 0, 0, err
	}
	floor = atOnce(func(i int) error { return verify(reports[i]) })
	return release, floor, errors.Join(errs...)
}

// verifier judges reports by what the broker has.
func verifier(dir string) (func([]byte) error, error) {
	text, err1 := os.ReadFile(filepath.Join(dir, "bundle.json"))
	pem, err2 := os.ReadFile(filepath.Join(dir, "root.pem"))
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	store, err1 := bundle.Parse(text)
	roots, err2 := bundle.ParseRoots("root.pem", pem)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	demands := &evidence.Demands{Report: &report.Policy{AllowSMT: true, RequireCRL: true}}
	sources := &evidence.Sources{Roots: *roots, Bundle: store}
	return func(b []byte) error {
		e, err := evidence.Recognise(b)
		if err != nil {
			return err
		}
		if v := evidence.Judge(e, sources, demands, time.Now()); !v.Accepted {
			return v.Refusal
		}
		return nil
	}, nil
}
