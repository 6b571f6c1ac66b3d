package launcher

import (
	"os"
	"testing"

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
