package launcher

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/launcher/rundir"
)

func TestReadExit(t *testing.T) {
	line := func(event, data string) string { return `{"event": "` + event + `", "data": ` + data + "}\r\n" }
	for log, want := range map[string]Exit{
		"": {Reason: "killed"},
		`{"QMP": {}}` + "\r\n" + line("RESUME", "{}"): {Reason: "killed"},
		line("SHUTDOWN", `{"guest": true, "reason": "guest-shutdown"}`): {
			Reason: "guest-shutdown", Guest: true,
		},
		line("GUEST_PANICKED", `{"action": "pause"}`) + line("SHUTDOWN", `{"reason": "x"}`): {
			Reason: "guest-panic", Guest: true,
		},
		"garbage\n" + line("SHUTDOWN", `{"guest": false, "reason": "host-signal"}`) + "{\"even": {
			Reason: "host-signal",
		},
	} {
		d := &rundir.Dir{Name: "vm", State: t.TempDir()}
		if err := os.WriteFile(d.LogPath(rundir.EventsLog), []byte(log), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadExit(d); err != nil || got != want {
			t.Errorf("%q: %+v, %v, want %+v", log, got, err, want)
		}
	}
}

// A VM that was killed ended when that was noted on its log, and not when QEMU last spoke.
func TestEndingOfAKilledVM(t *testing.T) {
	file := filepath.Join(t.TempDir(), "events.log")
	const said = `{"timestamp": {"seconds": 1000, "microseconds": 0}, "event": "RESUME"}` + "\n"
	shutdown := strings.Replace(said, `"RESUME"`, `"SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}`, 1)
	noted := time.Unix(2000, 0)
	for log, want := range map[string]time.Time{said: noted, said + shutdown: time.Unix(1000, 0), "": noted} {
		if err := os.WriteFile(file, []byte(log), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, noted, noted); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		_, at, err := Ending(f)
		if err != nil || !at.Equal(want) {
			t.Errorf("%q: %v, %v, want %v", log, at, err, want)
		}
		_ = f.Close()
	}
}
