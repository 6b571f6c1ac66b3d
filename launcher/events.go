package launcher

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"os"
)

// loggedEvent is a line of an event log, as far as the launcher reads it.
type loggedEvent struct {
	Event string `json:"event"`
	Data  struct {
		Guest  bool   `json:"guest"`
		Reason string `json:"reason"`
	} `json:"data"`
}

// tailEvents reads the events in the last n bytes of a log. Lines that are no
// events (greeting, replies, the beginning that was cut off) are skipped.
func tailEvents(f *os.File, n int64) ([]loggedEvent, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	from := max(0, info.Size()-n)
	lines := bufio.NewScanner(io.NewSectionReader(f, from, n))
	lines.Buffer(make([]byte, 4096), int(n)+1)
	var out []loggedEvent
	for lines.Scan() {
		var e loggedEvent
		if json.Unmarshal(bytes.TrimSpace(lines.Bytes()), &e) == nil && e.Event != "" {
			out = append(out, e)
		}
	}
	return out, lines.Err()
}
