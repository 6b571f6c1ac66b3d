// Package port is the connection between an emulated platform and a guest that runs on it: a
// virtio-serial port, by which a helper in the guest asks for evidence. It has the place of what
// only silicon has: the guest messages of SEV-SNP, and the calls of a trust domain to its module.
//
// Both sides send a header of little-endian words and then their bytes, one request at a time:
//
//	request   "SWT1"  u32 id  u32 type    u32 length               length bytes, at most 128
//	answer    "SWT1"  u32 id  u32 status  u32 length  u32 length   both, at most 64 KiB
//
// An answer has the id of its request: one that comes late belongs to a helper that has gone. The
// status is 0, or an errno of Linux; a status of the firmware, if there is one, is then the second
// part, u32.
package port

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// Name is the port's name, which the guest sees (/sys/class/virtio-ports).
const Name = "org.vmlatch.swtee.0"

// Type is what a request is about.
type Type uint32

// Requests.
const (
	Hello     Type = iota // the answer is an About, in JSON
	Report                // 64 bytes and u32 privilege level; a report or a quote, and a certificate table
	Extend                // u32 register and 48 bytes
	Registers             // the values of RTMR0 to RTMR3, 48 bytes each
)

// Limits, in bytes.
const (
	maxRequest = 128
	maxAnswer  = 64 << 10
)

const (
	magic         = "SWT1"
	statusSize    = 4
	requestHeader = 16
	answerHeader  = 20
)

// About says what a guest runs on.
type About struct {
	Emulated   bool   `json:"emulated"` // always true
	Technology string `json:"technology"`
	Label      string `json:"label"`
}

// Answer is what the platform says.
type Answer struct {
	Status unix.Errno
	// Firmware is a status of the firmware; 0 for none. With Status it is why the request failed;
	// alone it is what the firmware answers (SNP ABI, MSG_REPORT_RSP, STATUS).
	Firmware uint32
	Data     []byte
	More     []byte
}

// ErrProtocol is wrapped by errors about a peer that does not speak this.
var ErrProtocol = errors.New("swtee port: protocol error")

var le = binary.LittleEndian

// Serve answers requests until the guest has gone, or sends something else.
func Serve(rw io.ReadWriter, answer func(Type, []byte) Answer) error {
	for {
		var h [requestHeader]byte
		if _, err := io.ReadFull(rw, h[:]); err != nil {
			return err
		}
		n := le.Uint32(h[12:])
		if string(h[:4]) != magic || n > maxRequest {
			return fmt.Errorf("%w: header %x", ErrProtocol, h)
		}
		payload := make([]byte, n)
		if _, err := io.ReadFull(rw, payload); err != nil {
			return err
		}
		a := answer(Type(le.Uint32(h[8:])), payload)
		if a.Status != 0 || a.Firmware != 0 {
			a.Data, a.More = nil, nil
		}
		if a.Firmware != 0 {
			a.More = le.AppendUint32(nil, a.Firmware)
		}
		if len(a.Data)+len(a.More) > maxAnswer {
			a = Answer{Status: unix.EFBIG}
		}
		out := append([]byte(magic), make([]byte, answerHeader-len(magic))...)
		copy(out[4:], h[4:8])
		le.PutUint32(out[8:], uint32(a.Status))
		le.PutUint32(out[12:], uint32(len(a.Data)))
		le.PutUint32(out[16:], uint32(len(a.More)))
		out = append(append(out, a.Data...), a.More...)
		if _, err := rw.Write(out); err != nil {
			return err
		}
	}
}

// Ask sends a request and waits for its answer. The error is about the connection alone.
func Ask(rw io.ReadWriter, t Type, payload []byte) (a Answer, err error) {
	if len(payload) > maxRequest {
		return a, fmt.Errorf("%w: a request of %d bytes", ErrProtocol, len(payload))
	}
	b := append([]byte(magic), make([]byte, requestHeader-len(magic))...)
	_, _ = rand.Read(b[4:8]) // never fails (crypto/rand)
	id := le.Uint32(b[4:])
	le.PutUint32(b[8:], uint32(t))
	le.PutUint32(b[12:], uint32(len(payload)))
	if _, err := rw.Write(append(b, payload...)); err != nil {
		return a, err
	}
	const late = 16 // answers to others
	for range late {
		got, a, err := readAnswer(rw)
		if err != nil || got == id {
			return a, err
		}
	}
	return a, fmt.Errorf("%w: no answer to the request", ErrProtocol)
}

func readAnswer(r io.Reader) (id uint32, a Answer, err error) {
	var h [answerHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, a, err
	}
	n1, n2 := le.Uint32(h[12:]), le.Uint32(h[16:])
	if string(h[:4]) != magic || n1 > maxAnswer || n2 > maxAnswer-n1 {
		return 0, a, fmt.Errorf("%w: header %x", ErrProtocol, h)
	}
	body := make([]byte, n1+n2)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, a, err
	}
	a = Answer{Status: unix.Errno(le.Uint32(h[8:])), Data: body[:n1:n1], More: body[n1:]}
	if len(a.Data) == 0 && len(a.More) == statusSize {
		a.Firmware = le.Uint32(a.More)
	}
	return le.Uint32(h[4:]), a, nil
}

// AskAbout asks what the guest runs on.
func AskAbout(rw io.ReadWriter) (a About, err error) {
	answer, err := Ask(rw, Hello, nil)
	switch {
	case err != nil:
		return a, err
	case answer.Status != 0:
		return a, answer.Status
	}
	err = json.Unmarshal(answer.Data, &a)
	return a, err
}

// ReportPayload is that of a request for a report or a quote.
func ReportPayload(data [64]byte, vmpl uint32) []byte { return le.AppendUint32(data[:], vmpl) }

// ParseReport parses the payload of a Report request.
func ParseReport(b []byte) (data [64]byte, vmpl uint32, ok bool) {
	if len(b) != 68 {
		return data, 0, false
	}
	return [64]byte(b), le.Uint32(b[64:]), true
}

// ExtendPayload is that of a request to extend a register.
func ExtendPayload(register uint32, digest [48]byte) []byte {
	return append(le.AppendUint32(nil, register), digest[:]...)
}

// ParseExtend parses the payload of an Extend request.
func ParseExtend(b []byte) (register uint32, digest [48]byte, ok bool) {
	if len(b) != 52 {
		return 0, digest, false
	}
	return le.Uint32(b), [48]byte(b[4:]), true
}
