package main

import (
	"crypto/rand"
	"errors"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/smallfmt"
)

// Times and counts of an exchange.
const (
	firstPause = 500 * time.Millisecond
	longPause  = 10 * time.Second
	maxStale   = 16 // lines of an earlier attempt that a port may have kept
)

// client asks the broker.
type client struct {
	g      *guest
	agent  *exchange.Agent
	way    exchange.Way
	tsm    reporter
	end    time.Time
	stream *stream
	said   string // the last message about a failed attempt
}

// ask asks until there is an answer that ends it, or the time is over.
func (c *client) ask() (values map[string]exchange.Secret, receipt []byte, err error) {
	for pause := firstPause; ; {
		a, err := c.attempt()
		wait := pause
		switch {
		case err != nil:
			c.close()
			if final := find[*finalError](err); final != nil {
				return nil, nil, final.error
			}
			c.note(err.Error())
			pause = min(2*pause, longPause)
		case a.Secrets != nil:
			return a.Secrets, a.Receipt, nil
		case a.Denial != nil && !a.Denial.Retry:
			return nil, nil, denied(a.Denial.Reason)
		case a.Denial != nil:
			c.note("the broker does not answer yet: " + a.Denial.Reason)
			err = denied(a.Denial.Reason)
			pause = min(2*pause, longPause)
		case a.Pending != nil:
			c.note(smallfmt.Sprintf("request %d waits for the owner's approval", a.Pending.Request))
			err = smallfmt.Errorf("the owner has not approved request %d", a.Pending.Request)
			wait, pause = time.Duration(a.Pending.Retry)*time.Second, firstPause
		}
		if !c.g.now().Add(wait).Before(c.end) {
			return nil, nil, smallfmt.Errorf("no secret in time: %w", err)
		}
		c.g.sleep(wait)
	}
}

// note says what an attempt came to, once while it stays the same.
func (c *client) note(text string) {
	if text != c.said {
		c.said = text
		c.g.say("%s; trying again", text)
	}
}

// finalError is one that no further attempt can mend.
type finalError struct{ error }

func (e *finalError) Unwrap() error { return e.error }

// attempt goes through the exchange once.
func (c *client) attempt() (*exchange.Answer, error) {
	if c.stream == nil {
		dial := c.g.dial
		if dial == nil {
			dial = c.g.connect
		}
		s, err := dial(c.way)
		if err != nil {
			return nil, hint(
				smallfmt.Errorf("the broker cannot be reached by %v: %w", c.way.String(), err),
				reachHint(c.way),
			)
		}
		c.stream = s
	}
	var hello [16]byte
	_, _ = rand.Read(hello[:]) // never fails (crypto/rand)
	if err := c.stream.write(c.agent.Ask(hello), c.by(c.g.reply)); err != nil {
		return nil, hint(
			smallfmt.Errorf("the broker cannot be asked by %v: %w", c.way.String(), err),
			reachHint(c.way),
		)
	}
	var data [64]byte
	err := c.lines(c.g.reply, func(line []byte) (err error) {
		data, err = c.agent.Challenge(line)
		return err
	})
	if err != nil {
		return nil, hint(smallfmt.Errorf("the broker gives no challenge: %w", err), reachHint(c.way))
	}
	e, err := c.tsm.report(data)
	if err != nil {
		return nil, err
	}
	line, err := c.agent.Request(e.evidence, e.table, e.log)
	if err != nil {
		return nil, &finalError{err}
	}
	if err := c.stream.write(line, c.by(c.g.reply)); err != nil {
		return nil, err
	}
	var a *exchange.Answer
	err = c.lines(c.g.judge, func(line []byte) (err error) {
		a, err = c.agent.Answer(line)
		return err
	})
	if err != nil {
		return nil, smallfmt.Errorf("the broker gives no verdict: %w", err)
	}
	return a, nil
}

// by is when something must be done, at the latest.
func (c *client) by(d time.Duration) time.Time {
	return time.Now().Add(min(d, c.end.Sub(c.g.now())))
}

// lines reads lines until one is taken. Others may be of an earlier attempt, or the host's.
func (c *client) lines(d time.Duration, take func([]byte) error) error {
	by := c.by(d)
	var last error
	for range maxStale {
		line, err := c.stream.line(by)
		if err != nil {
			return errors.Join(last, err)
		}
		if last = take(line); last == nil {
			return nil
		}
	}
	return last
}

// receipt tells the broker that its release was opened. It changes nothing for the guest.
func (c *client) receipt(line []byte) {
	if c.stream != nil {
		_ = c.stream.write(line, c.by(time.Second))
	}
}

func (c *client) close() {
	if c.stream != nil {
		c.stream.close()
		c.stream = nil
	}
}

func reachHint(w exchange.Way) string {
	if w.Network == "port" {
		return "the host's spec needs [broker] connect = \"tcp:HOST:PORT\", and the owner's broker must run there" +
			" (latchkey serve), with a policy of this name and this key"
	}
	return "the owner's broker must listen there (latchkey serve), and the guest needs a network to it"
}

// hints are what to do after a denial, by its code.
var hints = map[string]string{
	"measurement": "what was launched is not what the owner's policy names: kernel, initrd, command line, firmware," +
		" CPUs; on the owner's machine: latchkey policy check, latchkey explain --evidence",
	"tpm-key": "the owner's policy does not know this TPM's key (keys), which vmlatch tpm reset changes:" +
		" latchkey tpm credential",
	"chip-not-allowed": "the owner's policy does not list this machine's chip (chips)",
	"policy":           "the owner's audit says which demand was not met",
	"no-policy":        "the broker has no policy of this name for this technology (latch.name)",
	"no-secret":        "the broker's policy does not give all of these secrets",
	"launch-has-key":   "this launch was served already: start the guest again",
	"launch-closed":    "this launch was served already: start the guest again",
	"once":             "the secret was given once, and is not given again",
	"max":              "the secret was given as often as the owner's policy allows in this time",
	"denied":           "the owner has denied it",
	"debug":            "the guest was launched so that the host may read its memory",
	"dry-run":          "the broker only tries its policies (--dry-run)",
}

func denied(reason string) error {
	err := smallfmt.Errorf("the broker denies the secret: %s", reason)
	if h := hints[reason]; h != "" {
		return hint(err, h)
	}
	return hint(err, "the owner's log says more (latchkey serve)")
}
