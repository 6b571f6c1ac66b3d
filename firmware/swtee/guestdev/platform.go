package guestdev

import (
	"context"
	"io"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/swtee/port"
)

// Technologies of guests that can ask for evidence.
const (
	snpGuest = "sev-snp"
	tdxGuest = "tdx"
)

// platform is the emulated platform as a guest's driver sees it.
type platform struct {
	port.About
	mu   sync.Mutex // one request at a time, of whatever kind
	rw   io.ReadWriter
	wait func(context.Context, time.Duration) error

	state    sync.Mutex
	dead     bool // SEV-SNP: the driver has given up its key
	inFlight bool // TDX: a quote that the driver has given up is still being made
}

// newPlatform greets the platform.
func newPlatform(rw io.ReadWriter) (*platform, error) {
	about, err := port.AskAbout(rw)
	return &platform{About: about, rw: rw, wait: sleep}, err
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// How long drivers wait: for a platform that throttles (SNP_REQ_RETRY_DELAY and
// SNP_REQ_MAX_RETRY_DURATION of Linux's sev-guest), and for a quote (getquote_timeout of its
// tdx-guest).
const (
	retryDelay  = 2 * time.Second
	retryMost   = 60 * time.Second
	quoteWithin = 30 * time.Second
)

// failure is how a request failed: the errno for the caller, and what the firmware and the host
// said (EXITINFO2 of the GHCB protocol); or the status in the firmware's answer, with which the
// request itself succeeds (MSG_REPORT_RSP, STATUS).
type failure struct {
	errno    unix.Errno
	firmware uint32
	host     uint32
	response uint32
}

// hostBusy is what a host says that throttles (enum sev_guest_vmm_err).
const hostBusy = 2

// report asks for a report or a quote, as the driver of the technology does.
func (p *platform) report(ctx context.Context, data [64]byte, vmpl uint32) ([]byte, failure) {
	if p.Technology == tdxGuest {
		return p.quote(ctx, data)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		return nil, failure{errno: unix.ENOTTY}
	}
	for waited := time.Duration(0); ; waited += retryDelay {
		a, err := port.Ask(p.rw, port.Report, port.ReportPayload(data, vmpl))
		switch {
		case err != nil:
			return nil, failure{errno: unix.EIO}
		case a.Status == 0:
			return a.Data, failure{response: a.Firmware}
		case a.Status == unix.EAGAIN && waited < retryMost:
			if p.wait(ctx, retryDelay) != nil {
				return nil, failure{errno: unix.EINTR, host: hostBusy}
			}
			continue
		case a.Status == unix.EAGAIN:
			p.dead = true // as the driver, which cannot reuse the sequence number of its message
			return nil, failure{errno: unix.ETIMEDOUT, host: hostBusy}
		case a.Firmware != 0:
			p.dead = true
			return nil, failure{errno: unix.EIO, firmware: a.Firmware}
		}
		return nil, failure{errno: a.Status}
	}
}

// quote asks for a quote. The driver waits for half a minute or until a signal comes, and has one
// buffer: while a quote is in flight in it there is no other.
func (p *platform) quote(ctx context.Context, data [64]byte) ([]byte, failure) {
	p.state.Lock()
	if p.inFlight {
		p.state.Unlock()
		return nil, failure{errno: unix.EBUSY}
	}
	p.inFlight = true
	p.state.Unlock()
	answered := make(chan port.Answer, 1)
	go func() {
		a := p.ask(port.Report, port.ReportPayload(data, 0))
		p.state.Lock()
		p.inFlight = false
		p.state.Unlock()
		answered <- a
	}()
	late := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { late <- p.wait(ctx, quoteWithin) }()
	select {
	case a := <-answered:
		return a.Data, failure{errno: a.Status}
	case err := <-late:
		if err != nil {
			return nil, failure{errno: unix.EINTR}
		}
		return nil, failure{errno: unix.ETIMEDOUT}
	}
}

// extend extends a register of a trust domain.
func (p *platform) extend(register uint32, digest [48]byte) unix.Errno {
	a := p.ask(port.Extend, port.ExtendPayload(register, digest))
	return a.Status
}

// registers are the values of a trust domain's, as the port has them.
func (p *platform) registers() (list [registerCount][digestSize]byte, errno unix.Errno) {
	a := p.ask(port.Registers, nil)
	if a.Status == 0 && len(a.Data) != len(list)*digestSize {
		return list, unix.EIO
	}
	for i := range list {
		if a.Status == 0 {
			list[i] = [digestSize]byte(a.Data[digestSize*i:])
		}
	}
	return list, a.Status
}

func (p *platform) ask(t port.Type, payload []byte) port.Answer {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, err := port.Ask(p.rw, t, payload)
	if err != nil {
		return port.Answer{Status: unix.EIO}
	}
	return a
}
