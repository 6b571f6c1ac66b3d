package integration

import (
	"testing"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
	"github.com/vmlatch/vmlatch/integration/asker"
)

// guestHere is an asker of a test.
type guestHere struct {
	*asker.Asker
	t *testing.T
}

// askersDesk is the owner's policy for askers.
func (b *broker) askersDesk(releases string) {
	b.t.Helper()
	head, err := b.asker().Policy()
	if err != nil {
		b.t.Fatal(err)
	}
	b.ownersDesk(head + releases)
}

// asker begins a launch.
func (b *broker) asker() *guestHere {
	b.t.Helper()
	a, err := asker.New(platformDir(), b.pin)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(a.Close)
	return &guestHere{a, b.t}
}

// dial connects to the broker.
func (a *guestHere) dial(socket string) {
	a.t.Helper()
	if err := a.Dial(socket); err != nil {
		a.t.Fatal(err)
	}
}

// says sends a line and returns the broker's; nil if it hangs up.
func (a *guestHere) says(line []byte) []byte {
	answer, err := a.Say(line)
	if err != nil {
		return nil
	}
	return answer
}

// request goes up to the line that asks for the secret.
func (a *guestHere) request() []byte {
	a.t.Helper()
	line, err := a.Prepare()
	if err != nil {
		a.t.Fatal(err)
	}
	return line
}

// with asks with a report that is changed before it is signed.
func (a *guestHere) with(change func(*report.Report)) []byte {
	a.t.Helper()
	a.Change = change
	return a.says(a.request())
}

// asks goes through the whole exchange.
func (a *guestHere) asks(socket string) *exchange.Answer {
	a.t.Helper()
	answer, err := a.Asks(socket)
	if err != nil {
		a.t.Fatal(err)
	}
	return answer
}
