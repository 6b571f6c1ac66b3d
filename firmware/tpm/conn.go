// Package tpm talks to a TPM 2.0: that of a machine, through its kernel's device, or an emulated
// one, through a socket. What a TPM answers is bounded, and what it refuses is explained.
//
// Files: conn.go sends commands, open.go finds a TPM, errors.go explains its refusals, pcr.go reads
// and names registers, handles.go has what every TPM of vmlatch has.
//
// Sources: "part 2" and "part 3" are those of the TCG TPM 2.0 Library, revision 1.59.
package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// Limits of a TPM's answers.
const (
	headerSize = 10 // tag, size, response code
	maxAnswer  = 8 << 10
	maxRetries = 20
)

// timeout bounds each command: making an RSA key takes longest, and its time has no bound.
const timeout = 30 * time.Second

// Response codes that ask for the same command again (part 2, section 6.6.3).
const (
	rcYielded = 0x908
	rcTesting = 0x90a
	rcRetry   = 0x922
)

// ErrAnswer is wrapped by errors about answers that no TPM gives.
var ErrAnswer = errors.New("not a TPM's answer")

// Conn is a connection to a TPM, for one goroutine at a time. It is a transport of go-tpm.
type Conn struct {
	rw    io.ReadWriteCloser
	until interface{ SetDeadline(time.Time) error } // nil: the kernel bounds commands
	sleep func(time.Duration)
}

// New is a connection over a channel, which Close closes. A channel with deadlines gets one for
// each command.
func New(rw io.ReadWriteCloser) *Conn {
	c := &Conn{rw: rw, sleep: time.Sleep}
	c.until, _ = rw.(interface{ SetDeadline(time.Time) error })
	return c
}

// Close closes the channel.
func (c *Conn) Close() error { return c.rw.Close() }

// Send sends a command and returns the answer, whatever its response code. A TPM that is busy is
// asked again.
func (c *Conn) Send(command []byte) ([]byte, error) {
	for try := 0; ; try++ {
		answer, err := c.once(command)
		if err != nil {
			return nil, &Error{Cause: "the TPM does not answer", Fix: fixGone, Err: err}
		}
		switch code := binary.BigEndian.Uint32(answer[6:]); {
		case code != rcYielded && code != rcTesting && code != rcRetry:
			return answer, nil
		case try >= maxRetries:
			return nil, &Error{
				Cause: "the TPM is busy, and asks to try again for ever", Fix: fixGone, Err: ErrAnswer,
			}
		}
		c.sleep(time.Millisecond << min(try, 7))
	}
}

// once sends a command once. A device gives its answer to one read, a socket in parts.
func (c *Conn) once(command []byte) ([]byte, error) {
	if c.until != nil {
		_ = c.until.SetDeadline(time.Now().Add(timeout)) // devices have none
	}
	if _, err := c.rw.Write(command); err != nil {
		return nil, err
	}
	answer := make([]byte, maxAnswer+1)
	n, size := 0, headerSize
	for n < size {
		m, err := c.rw.Read(answer[n:])
		n += m
		switch {
		case n >= headerSize:
			if size = int(binary.BigEndian.Uint32(answer[2:])); size < headerSize || size > maxAnswer {
				return nil, fmt.Errorf("%w: it says that it has %d bytes", ErrAnswer, uint32(size))
			}
			if n > size {
				return nil, fmt.Errorf("%w: it says that it has %d bytes, and has more", ErrAnswer, size)
			}
		case m == 0 && err == nil:
			err = io.ErrNoProgress
		}
		if err != nil && n < size {
			return nil, err
		}
	}
	return answer[:n], nil
}
