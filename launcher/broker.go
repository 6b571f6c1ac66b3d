package launcher

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	evidence "github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// brokerTime bounds one question to a broker, and brokerPause is what lies between two. A guest
// that is denied has lastWords for its console.
const (
	brokerTime  = 20 * time.Second
	brokerPause = time.Second
	lastWords   = 5 * time.Second
)

// ErrBroker is wrapped by errors about a guest that its owner's broker did not accept.
var ErrBroker = errors.New("the owner's broker")

// askBroker sends a line to the broker and reads its answer.
func askBroker(ctx context.Context, b *plan.Broker, line []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, brokerTime)
	defer cancel()
	var d net.Dialer
	network, address := b.Address()
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if _, err := conn.Write(line); err != nil {
		return nil, err
	}
	answer, err := bufio.NewReader(io.LimitReader(conn, evidence.MaxLine)).ReadBytes('\n')
	if err != nil && ctx.Err() != nil {
		err = errors.New("it does not answer")
	} else if errors.Is(err, io.EOF) {
		err = errors.New("it hangs up: it holds another key than the guest's command line names (latch.key)")
	}
	return answer, err
}

// brokerFailed is the error of a broker that gave nothing.
func (p *Plan) brokerFailed(what string, err error) error {
	e := &fault.Error{
		Kind: fault.Failure, Op: what + " of the broker at " + p.Guest.Broker.Connect, Err: err,
		Fix: `the owner's broker must run there ("latchkey serve"); [broker] connect says where`,
	}
	var pending *evidence.PendingError
	if errors.As(err, &pending) {
		e.Fix = approvesSay
	}
	var refused *evidence.RefusedError
	if errors.As(err, &refused) {
		e.Kind, e.Fix = fault.Refused, "the owner's log and audit say more (latchkey serve)"
	}
	return e
}

// prove lets the guest run and waits until its broker says what became of its evidence. A guest
// that is refused, or is unknown to the broker when the time is over, is ended by the caller. One
// that was given its secret and sent no receipt is left alone: the record says so.
func (m *Machine) prove(ctx context.Context, p *Plan, notice func(string)) error {
	w, err := p.Guest.BrokerWords()
	if err != nil {
		return err
	}
	if err := m.Release(ctx); err != nil {
		return err
	}
	m.takes(ctx, "prove")
	if err := m.proved(ctx, ProofWaits, evidence.SHA512{}); err != nil {
		return err
	}
	limit := time.Duration(p.Guest.Latch.Timeout)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	statements := m.statements(ctx)
	v := &verdict{m: m, broker: &p.Guest.Broker, pin: w.Key, notice: notice}
	tick := time.NewTicker(brokerPause)
	defer tick.Stop()
	for v.denied == nil {
		select {
		case s, ok := <-statements:
			if ok {
				v.latest = s
				continue
			}
			if ctx.Err() != nil { // which closed the pipe
				return m.unproven(ctx, limit, v)
			}
			// The guest has ended, perhaps because it was refused, or after a short life.
			switch done, err := v.ask(ctx); {
			case done || err != nil:
				return err
			case v.denied != nil:
				return v.denied
			case m.rec.Latch.Proof == ProofReleased:
				return nil
			}
			return v.ended()
		case <-tick.C:
			if done, err := v.ask(ctx); done || err != nil {
				return err
			}
		case <-ctx.Done():
			return m.unproven(ctx, limit, v)
		}
	}
	// It powers itself off, and says why.
	for last := time.After(lastWords); ; {
		select {
		case _, ok := <-statements:
			if ok {
				continue
			}
		case <-last:
		case <-ctx.Done():
		}
		return v.denied
	}
}

// verdict is what the broker says of a guest's statement.
type verdict struct {
	m           *Machine
	broker      *plan.Broker
	pin         evidence.Key
	latest      evidence.SHA512 // the statement; zero if there is none yet
	state       evidence.State
	denied      error
	unreachable error
	notice      func(string) // is told once that the request waits for a person
}

// ask asks the broker what became of the statement. It is done once the guest has its secret; a
// refusal is an error.
func (v *verdict) ask(ctx context.Context) (done bool, err error) {
	if v.latest == (evidence.SHA512{}) {
		return false, nil
	}
	line, err := askBroker(ctx, v.broker, evidence.AskForStatus(v.latest))
	var s *evidence.Status
	if err == nil {
		s, err = evidence.ReadStatus(line, v.pin, v.latest)
	}
	if v.unreachable = err; err != nil {
		return false, nil
	}
	switch v.state = s.State; s.State {
	case evidence.Received:
		return true, v.m.proved(ctx, ProofReceived, v.latest)
	case evidence.Released:
		if v.m.rec.Latch.Proof != ProofReleased {
			return false, v.m.proved(ctx, ProofReleased, v.latest)
		}
	case evidence.Waiting:
		if v.notice != nil {
			v.notice(v.m.rec.Name + ": its request waits until the owner approves it (latchkey requests)")
			v.notice = nil
		}
	case evidence.Denied:
		v.denied = &fault.Error{
			Kind: fault.Refused, Op: v.m.rec.Name, Err: fmt.Errorf("%w denies its secret: %s", ErrBroker, s.Reason),
			Fix: `the guest's console ("vmlatch logs NAME") and the owner's audit say more`,
		}
	}
	return false, nil
}

// proved records what became of the guest's proof.
func (m *Machine) proved(ctx context.Context, word string, statement evidence.SHA512) error {
	if name := map[string]string{ProofReleased: "accepted", ProofReceived: "received"}[word]; name != "" {
		m.takes(ctx, name)
	}
	return m.amend(func(r *rundir.Record) {
		r.Latch.Proof, r.Latch.Verified = word, word != ProofWaits
		if word != ProofWaits {
			r.Latch.Statement = statement.String()
		}
	})
}

// ended is what it means that the guest powered off, or crashed, before it was accepted.
func (v *verdict) ended() error {
	v.reach()
	e := &fault.Error{
		Kind: fault.Refused, Op: v.m.rec.Name, Err: errors.New("the guest ended before its broker accepted it"),
		Fix: logsSay,
	}
	switch {
	case v.state == evidence.Waiting:
		e.Err, e.Fix = fmt.Errorf("%w; its request waited for approval", e.Err), approvesSay
	case v.unreachable != nil:
		e.Err = fmt.Errorf("%w; the broker cannot be reached: %w", e.Err, v.unreachable)
	}
	return e
}

// reach finds out whether there is a broker at all, if the guest has never asked it.
func (v *verdict) reach() {
	if v.latest != (evidence.SHA512{}) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), brokerPause)
	defer cancel()
	network, address := v.broker.Address()
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err == nil {
		err = conn.Close()
	}
	v.unreachable = err
}

// unproven is what it means that the time is over.
func (m *Machine) unproven(ctx context.Context, limit time.Duration, v *verdict) error {
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return ctx.Err()
	}
	if m.rec.Latch.Proof == ProofReleased {
		return nil // it has its secret, or may have: ending it would not help
	}
	v.reach()
	e := &fault.Error{
		Kind: fault.Refused, Op: m.rec.Name,
		Err: fmt.Errorf("%w has not accepted it within %v ([latch] timeout)", ErrBroker, limit),
		Fix: logsSay,
	}
	switch {
	case v.unreachable != nil:
		e.Err = fmt.Errorf("%w; it cannot be reached: %w", e.Err, v.unreachable)
	case v.state == evidence.Waiting:
		e.Err = fmt.Errorf("%w; its request waits for approval", e.Err)
		e.Fix = approvesSay
	}
	return e
}

const approvesSay = `the owner approves it ("latchkey requests"); a longer [latch] timeout waits longer`

const logsSay = `"vmlatch logs NAME" shows the guest's console, on which latchguest says why`

// What became of a guest's proof, in records.
const (
	ProofWaits    = "proving"
	ProofReleased = "released"
	ProofReceived = "received"
)

// statements are the hashes of what the guest states to its broker, as the pipe shows them. They
// are only names to ask for: the guest may write anything. The channel is closed with the pipe.
func (m *Machine) statements(ctx context.Context) <-chan evidence.SHA512 {
	found := make(chan evidence.SHA512, 16)
	pipe := m.asks
	m.asks = nil
	stop := context.AfterFunc(ctx, func() { _ = pipe.Close() })
	go func() {
		defer close(found)
		defer stop()
		defer pipe.Close()
		r := bufio.NewReaderSize(pipe, evidence.MaxLine)
		for {
			line, err := r.ReadSlice('\n')
			if errors.Is(err, bufio.ErrBufferFull) {
				continue // no message is as long
			}
			if err != nil {
				if ctx.Err() != nil { // the pipe was closed here: the guest may run on
					<-ctx.Done()
				}
				return
			}
			if s, ok := evidence.StatementOf(line); ok {
				select {
				case found <- s:
				default: // a guest that floods is asked about by one of its statements
				}
			}
		}
	}()
	return found
}
