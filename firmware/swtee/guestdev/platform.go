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
	mu   sync.Mutex // one request at a time
	rw   io.ReadWriter
	dead bool // SEV-SNP: the driver has given up its key
	wait func(context.Context, time.Duration) error
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
// said (EXITINFO2 of the GHCB protocol).
type failure struct {
	errno    unix.Errno
	firmware uint32
	host     uint32
}

// hostBusy and hostInvalidLen are what the host may say (enum sev_guest_vmm_err).
const (
	hostInvalidLen = 1
	hostBusy       = 2
)

// report asks for a report or a quote, as the driver of the technology does.
func (p *platform) report(ctx context.Context, data [64]byte, vmpl uint32) (b, table []byte, f failure) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		return nil, nil, failure{errno: unix.ENOTTY}
	}
	began := time.Now()
	for waited := time.Duration(0); ; waited += retryDelay {
		a, err := port.Ask(p.rw, port.Report, port.ReportPayload(data, vmpl))
		switch {
		case err != nil:
			return nil, nil, failure{errno: unix.EIO}
		case a.Status == 0 && p.Technology == tdxGuest && time.Since(began) > quoteWithin:
			return nil, nil, failure{errno: unix.ETIMEDOUT}
		case a.Status == 0:
			return a.Data, a.More, failure{}
		case a.Status == unix.EAGAIN && p.Technology == snpGuest && waited < retryMost:
			if p.wait(ctx, retryDelay) != nil {
				return nil, nil, failure{errno: unix.EINTR, host: hostBusy}
			}
			continue
		case a.Status == unix.EAGAIN && p.Technology == snpGuest:
			p.dead = true // as the driver, which cannot reuse the sequence number of its message
			return nil, nil, failure{errno: unix.ETIMEDOUT, host: hostBusy}
		case a.Firmware != 0 && p.Technology == snpGuest:
			p.dead = true
			return nil, nil, failure{errno: unix.EIO, firmware: a.Firmware}
		}
		return nil, nil, failure{errno: a.Status, firmware: a.Firmware}
	}
}

// extend extends a register of a trust domain.
func (p *platform) extend(register uint32, digest [48]byte) unix.Errno {
	a := p.ask(port.Extend, port.ExtendPayload(register, digest))
	return a.Status
}

// registers are the values of a trust domain's.
func (p *platform) registers() (list [4][48]byte, errno unix.Errno) {
	a := p.ask(port.Registers, nil)
	if a.Status == 0 && len(a.Data) != len(list)*48 {
		return list, unix.EIO
	}
	for i := range list {
		if a.Status == 0 {
			list[i] = [48]byte(a.Data[48*i:])
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
