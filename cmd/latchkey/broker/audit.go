package broker

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// Event is a line of the audit log.
type Event struct {
	Seq   uint64    `json:"seq"`
	Prev  string    `json:"prev"` // SHA-256 of the line before, in hex; "" for the first
	At    time.Time `json:"at"`
	Event string    `json:"event"`

	Broker     string   `json:"broker,omitempty"` // the key that the guest pins
	Policy     string   `json:"policy,omitempty"`
	Technology string   `json:"technology,omitempty"`
	Emulated   bool     `json:"emulated,omitempty"`
	Trust      string   `json:"trust,omitempty"` // "host": the host could have made the evidence up
	Secrets    []string `json:"secrets,omitempty"`
	Again      bool     `json:"again,omitempty"` // to the same launch and key
	Launch     string   `json:"launch,omitempty"`
	Key        string   `json:"key,omitempty"` // SHA-256 of the agent's
	Chip       string   `json:"chip,omitempty"`
	Digest     string   `json:"digest,omitempty"`
	Statement  string   `json:"statement,omitempty"`
	Request    uint64   `json:"request,omitempty"`
	Reason     string   `json:"reason,omitempty"`
	Detail     string   `json:"detail,omitempty"`
	NotProven  []string `json:"not-proven,omitempty"`
	Receipt    string   `json:"receipt,omitempty"` // SHA-256 of the MAC that the agent will show, or has shown

	Counts map[string]int    `json:"counts,omitempty"` // of what failed before evidence was verified
	Marks  map[string]uint64 `json:"marks,omitempty"`
	Lost   *Head             `json:"lost,omitempty"` // how far the audit went before it was lost
}

// Events.
const (
	evStart   = "start"
	evLoad    = "load"
	evRelease = "release"
	evDeny    = "deny"
	evPending = "pending"
	evApprove = "approve"
	evRefuse  = "refuse" // a person did
	evReceipt = "receipt"
	evNoise   = "noise"
	evLost    = "audit-loss-accepted"
)

// Head is how far an audit log goes.
type Head struct {
	Seq  uint64    `json:"seq"`
	Hash string    `json:"hash"` // SHA-256 of the last line, in hex
	At   time.Time `json:"at"`
}

// maxEvent bounds a line of the audit, in bytes.
const maxEvent = 64 << 10

// ErrAudit is wrapped by errors about audit logs that are not whole.
var ErrAudit = errors.New("audit log")

// ErrAuditLost says that the audit is shorter than what was answered by it.
var ErrAuditLost = fmt.Errorf("%w: it was truncated, or an old one was put in its place", ErrAudit)

func lineHash(line []byte) string {
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:])
}

// encodeEvent writes an event as a line that follows on a head.
func encodeEvent(e *Event, h Head) (line []byte, next Head) {
	e.Seq, e.Prev = h.Seq+1, h.Hash
	line, err := json.Marshal(e)
	if err != nil {
		panic(err) // an Event has no value that cannot be encoded
	}
	return line, Head{e.Seq, lineHash(line), e.At}
}

// ReadAudit reads an audit log from its beginning and calls each for every event. It returns how
// far the log goes, and how many bytes of it are whole lines. The error wraps ErrAudit and names
// the line that does not follow on the one before. The log must hold the lines that heads name; a
// zero head names none.
func ReadAudit(in io.Reader, each func(*Event) error, heads ...Head) (h Head, whole int64, err error) {
	r := bufio.NewReaderSize(in, maxEvent)
	missing := slices.DeleteFunc(slices.Clone(heads), func(x Head) bool { return x.Seq == 0 })
	found := func(h Head) {
		missing = slices.DeleteFunc(missing, func(x Head) bool { return x.Seq == h.Seq && x.Hash == h.Hash })
	}
	for n := 1; ; n++ {
		line, err := r.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			if len(missing) > 0 {
				return h, whole, fmt.Errorf(
					"%w: it does not hold line %d as it was known",
					ErrAuditLost,
					missing[0].Seq,
				)
			}
			return h, whole, nil // a line without an end was never finished
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			return h, whole, fmt.Errorf("%w: line %d: longer than %d bytes", ErrAudit, n, maxEvent)
		}
		if err != nil {
			return h, whole, err
		}
		text := bytes.TrimSuffix(line, []byte("\n"))
		var e Event
		d := json.NewDecoder(bytes.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(&e); err != nil {
			return h, whole, fmt.Errorf("%w: line %d: is damaged", ErrAudit, n)
		}
		switch {
		case n == 1 && e.Event == evLost && e.Lost != nil: // what was before is lost, as the owner knows
			h = Head{Seq: e.Lost.Seq, Hash: e.Lost.Hash}
			found(h)
		case n == 1 && (e.Seq != 1 || e.Prev != ""):
			return h, whole, fmt.Errorf("%w: line 1: its beginning is missing", ErrAudit)
		}
		if e.Seq != h.Seq+1 || e.Prev != h.Hash {
			return h, whole, fmt.Errorf(
				"%w: line %d: does not follow on the line before: one was changed or removed", ErrAudit, n)
		}
		if each != nil {
			if err := each(&e); err != nil {
				return h, whole, err
			}
		}
		h = Head{e.Seq, lineHash(text), e.At}
		found(h)
		whole += int64(len(line))
	}
}
