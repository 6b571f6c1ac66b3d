package launcher

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// Event is a line of a VM's event log (vmlatch.event/1). Its data may come from the
// guest.
type Event struct {
	Time time.Time       `json:"time"`
	Name string          `json:"event"` // QEMU's word (qapi/*.json), or EventEnded
	Data json.RawMessage `json:"data,omitempty"`
}

// EventEnded is made here, not by QEMU: the last event of a VM, with how it ended as
// its data.
const EventEnded = "VMLATCH_ENDED"

// Ending is how and when a VM ended, by its event log. The time is that of the last
// thing QEMU said, or when vmlatch killed it; other deaths are not seen.
func Ending(log *os.File) (exit Exit, at time.Time, err error) {
	events, written, err := tailEvents(log)
	exit, at = exitOf(events), written
	if len(events) > 0 && (exit.Reason != ReasonKilled || at.Before(events[len(events)-1].Time)) {
		at = events[len(events)-1].Time
	}
	return exit, at, err
}

// noteEnd leaves on an event log when its VM was killed, which QEMU cannot write down.
func noteEnd(ctx context.Context, d *rundir.Dir) {
	d.AwaitLogs(ctx) // who writes last sets the time
	log, err := d.OpenLog(rundir.EventsLog, false)
	if err != nil {
		return
	}
	defer log.Close()
	now := unix.NsecToTimeval(time.Now().UnixNano())
	_ = unix.Futimes(int(log.Fd()), []unix.Timeval{now, now})
}

// EndedEvent is the last event of a VM that has ended, by its event log.
func EndedEvent(log *os.File) (e Event, err error) {
	exit, at, err := Ending(log)
	if err != nil {
		return e, err
	}
	data, err := json.Marshal(exit)
	return Event{at, EventEnded, data}, err
}

// maxEventLine is the longest line of an event log that is read. Events have some
// hundred bytes; a panic's text comes from the guest.
const maxEventLine = 1 << 20

// EventWriter takes an event log apart as it is written to it. Other lines (greeting,
// replies, cut or endless ones) are skipped.
type EventWriter struct {
	Emit    func(Event) error
	pending []byte // a line without its end
	skip    bool   // until the end of a line that is too long
}

// Write returns Emit's errors.
func (w *EventWriter) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		line, more, ended := bytes.Cut(rest, []byte("\n"))
		rest = more
		if !w.skip {
			w.pending = append(w.pending, line...)
		}
		if len(w.pending) > maxEventLine {
			w.pending, w.skip = nil, true
		}
		if !ended {
			break
		}
		line, w.pending = w.pending, w.pending[:0]
		if w.skip {
			w.skip = false
			continue
		}
		if e, ok := parseEvent(line); ok {
			if err := w.Emit(e); err != nil {
				return 0, err
			}
		}
	}
	return len(p), nil
}

// parseEvent reads an event as QEMU writes it (docs/interop/qmp-spec).
func parseEvent(line []byte) (Event, bool) {
	var e struct {
		Event     string
		Data      json.RawMessage
		Timestamp struct{ Seconds, Microseconds int64 }
	}
	if json.Unmarshal(bytes.TrimSpace(line), &e) != nil || e.Event == "" {
		return Event{}, false
	}
	t := time.Unix(e.Timestamp.Seconds, e.Timestamp.Microseconds*1000).UTC()
	if y := t.Year(); y < 0 || y > 9999 { // JSON has no other
		return Event{}, false
	}
	return Event{t, e.Event, e.Data}, true
}

// maxEventsTail is how much of an event log is read for the last events.
const maxEventsTail = 64 << 10

// LastEvents are the last events of a log; none if it cannot be read.
func LastEvents(log *os.File) []Event {
	events, _, err := tailEvents(log)
	if err != nil {
		return nil
	}
	return events
}

// tailEvents reads the last events of a log, and when it was written to.
func tailEvents(f *os.File) (events []Event, written time.Time, err error) {
	info, err := f.Stat()
	if err != nil {
		return nil, written, err
	}
	w := &EventWriter{Emit: func(e Event) error {
		events = append(events, e)
		return nil
	}}
	from := max(0, info.Size()-maxEventsTail)
	if _, err := io.Copy(w, io.NewSectionReader(f, from, maxEventsTail)); err != nil {
		return nil, written, err
	}
	return events, info.ModTime().UTC(), nil
}
