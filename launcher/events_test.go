package launcher

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

const logged = `{"QMP": {"version": {}}}` + "\r\n" +
	`{"return": {}, "id": 1}` + "\r\n" +
	`{"timestamp": {"seconds": 1764150000, "microseconds": 5}, "event": "RESUME"}` + "\r\n" +
	"not JSON\n" +
	`{"timestamp": {"seconds": 1764150001, "microseconds": 0}, "event": "SHUTDOWN", ` +
	`"data": {"guest": true, "reason": "guest-shutdown"}}` + "\r\n"

// collect gives a log to an EventWriter in pieces.
func collect(pieces ...string) (events []Event, err error) {
	w := &EventWriter{Emit: func(e Event) error {
		events = append(events, e)
		return nil
	}}
	for _, p := range pieces {
		if _, err := w.Write([]byte(p)); err != nil {
			return nil, err
		}
	}
	return events, nil
}

func TestEventWriter(t *testing.T) {
	want := []Event{
		{time.Unix(1764150000, 5000).UTC(), "RESUME", nil},
		{time.Unix(1764150001, 0).UTC(), "SHUTDOWN", json.RawMessage(`{"guest": true, "reason": "guest-shutdown"}`)},
	}
	for cut := range logged {
		got, err := collect(logged[:cut], logged[cut:])
		if err != nil || len(got) != 2 {
			t.Fatalf("cut at %d: %+v, %v", cut, got, err)
		}
		for i := range got {
			if !got[i].Time.Equal(want[i].Time) || got[i].Name != want[i].Name ||
				!bytes.Equal(got[i].Data, want[i].Data) {
				t.Errorf("cut at %d: %+v, want %+v", cut, got[i], want[i])
			}
		}
	}
	if got, _ := collect(logged[:len(logged)-2]); len(got) != 1 {
		t.Errorf("a line that has not ended is taken: %+v", got)
	}
	long := `{"event": "` + strings.Repeat("x", maxEventLine) + `"}` + "\n"
	if got, _ := collect(long[:maxEventLine/2], long[maxEventLine/2:], logged); len(got) != 2 {
		t.Errorf("after an endless line: %+v", got)
	}
	boom := errors.New("no more")
	w := &EventWriter{Emit: func(Event) error { return boom }}
	if _, err := w.Write([]byte(logged)); !errors.Is(err, boom) {
		t.Errorf("Emit's error: %v", err)
	}
}

func FuzzEventWriter(f *testing.F) {
	f.Add([]byte(logged), 40)
	f.Add([]byte(`{"event":"X","timestamp":{"seconds":-1e18}}`+"\n"), 3)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		whole, _ := collect(string(b))
		if cut < 0 || cut > len(b) {
			cut = 0
		}
		parts, _ := collect(string(b[:cut]), string(b[cut:]))
		if len(whole) != len(parts) {
			t.Errorf("cut at %d: %d events, whole %d", cut, len(parts), len(whole))
		}
		for _, e := range whole {
			if _, err := json.Marshal(e); err != nil {
				t.Errorf("%+v cannot be printed: %v", e, err)
			}
		}
	})
}
