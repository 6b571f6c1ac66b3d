//go:build linux

// These tests need swtee, which is for Linux, as their platform.

package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/sev"
)

// TestAdvice: each row of the table applies to a wrapped error too, and no hint is in two
// rows.
func TestAdvice(t *testing.T) {
	seen := map[string]bool{}
	for _, row := range advice {
		err := advise(fmt.Errorf("reading: %w", row.is))
		var e *cli.Error
		if !errors.As(err, &e) || e.Code != row.code || !slices.Equal(e.Hints, row.hints) {
			t.Errorf("%v: %+v, want code %d and hints %q", row.is, e, row.code, row.hints)
		}
		for _, h := range row.hints {
			if seen[h] {
				t.Errorf("the hint %q stands twice", h)
			}
			seen[h] = true
		}
	}
}

func TestAdviceLeavesOthersAlone(t *testing.T) {
	unknown := errors.New("unknown")
	if got := advise(unknown); got != unknown {
		t.Errorf("an unknown error became %v, want it unchanged", got)
	}
	done := cli.Fail(cli.ExitHost, sev.ErrUntrusted, "own hint")
	if got := advise(done); got != done {
		t.Errorf("an error with a code became %v, want it unchanged", got)
	}
}

// TestHelp: every command describes itself within the terminal's width.
func TestHelp(t *testing.T) {
	d := newDesk(t)
	for _, c := range newApp(&cli.IO{}).Commands {
		out, _ := d.run(c.Name + " --help")
		matches(t, c.Name, out, `latchkey `+c.Name)
		if !strings.Contains(c.Description, "Example") {
			t.Errorf("%s has no example", c.Name)
		}
		for line := range strings.Lines(c.Description) {
			if len([]rune(line)) > 100 {
				t.Errorf("%s: a line of %d columns, want at most 100: %s", c.Name, len([]rune(line)), line)
			}
		}
	}
	out, _ := d.run("session --help")
	matches(t, "session --help", out, `no-debug, no-key-sharing and no-send(.|\n)*latchkey help policy`)
	out, _ = d.run("help policy")
	matches(t, "help policy", out, `no-key-sharing +no other guest(.|\n)*api=1\.55`)
	out, _ = d.run("help trust")
	matches(t, "help trust", out, `what a verified measurement proves`)
	d.refused("help trsut", cli.ExitUsage, `no command or topic "trsut"\nhint: did you mean "latchkey help trust"\?`)
	d.refused("verfiy", cli.ExitUsage, `no command "verfiy"\nhint: did you mean "latchkey verify"\?`)
	d.refused("verify --ownr x", cli.ExitUsage, `no option --ownr\nhint: did you mean --owner\?`)
}

// TestOneSecretOfManyAtOnce: if several commands use one session at the same time, only one
// of them gets a packet.
func TestOneSecretOfManyAtOnce(t *testing.T) {
	d := newDesk(t)
	d.session("guest")
	g := d.launch("guest", sev.PolicyDefault, d.read("OVMF.fd"), nil)
	d.run(verifyLine + "--firmware OVMF.fd")
	table, err := readEntries(&cli.IO{Err: io.Discard}, []string{"disk=passphrase"})
	must(t, err)
	const many = 8
	errs := make([]error, many)
	var wg sync.WaitGroup
	for i := range many { // below the parser, which several programs in one process share
		wg.Go(func() {
			errs[i] = (&store{name: "guest.owner"}).update(func(o *ownerFile) error {
				_, err := pack(o, &g.measurement, nil, table)
				o.Used = &used{At: time.Now()}
				return err
			})
		})
	}
	wg.Wait()
	packed := 0
	for _, err := range errs {
		var e *cli.Error
		switch {
		case err == nil:
			packed++
		case !errors.As(err, &e) || e.Code != cli.ExitRefused || !strings.Contains(err.Error(), "already"):
			t.Errorf("%v, want that the session has given out its secret already", err)
		}
	}
	if packed != 1 {
		t.Errorf("%d packets of one session, want 1", packed)
	}
}
