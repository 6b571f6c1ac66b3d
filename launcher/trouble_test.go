package launcher

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/launcher/rundir"
)

func TestTrouble(t *testing.T) {
	line := func(name, data string) string {
		return `{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "` + name + `", "data": ` + data + "}\n"
	}
	full := line(
		"BLOCK_IO_ERROR",
		`{"node-name": "disk1", "action": "stop", "nospace": true, "reason": "No space left"}`,
	)
	broken := line("BLOCK_IO_ERROR", `{"node-name": "disk0", "action": "report", "reason": "Input/output error"}`)
	r := &rundir.Record{Disks: []rundir.Disk{{Image: "/a"}, {Image: "/b"}}}
	for name, c := range map[string]struct {
		log  string
		want []string
	}{
		"nothing": {line("RESUME", "{}"), nil},
		"a disk is full, said once": {
			full + full, []string{`the host has no room left for /b; make room, then "vmlatch resume"`},
		},
		"it goes on":   {full + line("STOP", "{}") + line("RESUME", "{}"), nil},
		"a disk fails": {broken, []string{"Input/output error: /a"}},
		"a disk of no spec": {
			strings.Replace(broken, "disk0", "seed", 1), []string{"Input/output error: a disk"},
		},
		"passt": {
			line("NETDEV_STREAM_DISCONNECTED", `{"netdev-id": "net0"}`),
			[]string{"network net0 has gone with the program that carried it"},
		},
		"a panic": {line("GUEST_PANICKED", `{"action": "pause"}`), []string{"the guest's kernel has panicked"}},
		"a hang": {
			line("WATCHDOG", `{"action": "reset"}`),
			[]string{"the guest hung: its watchdog was not fed (action reset)"},
		},
		"nonsense": {line("BLOCK_IO_ERROR", `[]`) + "{", nil},
	} {
		file := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(file, []byte(c.log), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := Trouble(LastEvents(f), r); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		_ = f.Close()
	}
}

// TestLostDisks: a device that has gone is told of, whatever has its name by then, and an image
// that was moved is not, as QEMU has it open.
func TestLostDisks(t *testing.T) {
	there, err := os.ReadDir("/sys/dev/block")
	if err != nil || len(there) == 0 {
		t.Skip("no block devices here")
	}
	r := &rundir.Record{Disks: []rundir.Disk{
		{Image: "/none"}, {Image: "/dev/none", Device: there[0].Name()}, {Image: "/dev/null", Device: "4095:1"},
	}}
	got := LostDisks(r)
	if len(got) != 1 || !strings.HasPrefix(got[0], "/dev/null has gone") {
		t.Errorf("%q", got)
	}
}
