package integration

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/integration/qemus"
)

// floodingFirmware writes to the console without end.
func floodingFirmware() string {
	b := []byte(strings.Repeat("\xf4", 64<<10))
	const code, reset = 0xff00, 0xfff0
	// mov dx, 0x3f8; mov al, 'x'; out dx, al; jmp back to it
	copy(b[code:], "\xba\xf8\x03\xb0x\xee\xeb\xfd")
	copy(b[reset:], "\xe9\x0d\xff") // jmp code
	return string(b)
}

// TestLogsOfAFlood: a guest that writes without end takes no more room than the host's
// settings say, on every QEMU: with a keeper at no time, without one after each command.
func TestLogsOfAFlood(t *testing.T) {
	t.Parallel()
	const most = 64 << 10
	h := newHost(t).race()
	h.env = append(h.env, "VMLATCH_CONFIG="+filepath.Join(h.work, "host.toml"))
	h.write("flood.fd", floodingFirmware())
	qemus.Each(t, "7.2", func(t *testing.T, qemu string) {
		h.t = t
		h.write("flood.toml", "qemu = \""+qemu+"\"\nmemory = \"32MiB\"\n[firmware]\nimage = \"flood.fd\"\n")
		for _, keeper := range []bool{true, false} {
			h.write("host.toml", fmt.Sprintf("[logs]\nmax = \"64KiB\"\nkeeper = %t\n", keeper))
			h.run("vmlatch", "start", "flood.toml")
			log := filepath.Join(h.work, "state/flood/console.log")
			begin := time.Now()
			for total := 0; time.Since(begin) < 2*time.Second; time.Sleep(5 * time.Millisecond) {
				if !keeper && time.Since(begin) > time.Duration(total+1)*500*time.Millisecond {
					h.run("vmlatch", "ps")
					total++
				} else if !keeper {
					continue
				}
				var st syscall.Stat_t
				if err := syscall.Stat(log, &st); err != nil {
					t.Fatal(err)
				}
				grace := int64(0)
				if !keeper {
					grace = 1 << 20 // what the guest writes while this looks
				}
				if room := st.Blocks * 512; room > most+grace {
					t.Fatalf("keeper %t: the log takes %d bytes, want up to %d", keeper, room, most+grace)
				}
			}
			h.run("vmlatch", "stop", "flood", "--now")
			h.shows("console log", h.run("vmlatch", "logs", "flood"), "xxxxxxxx")
			said := h.run("vmlatch", "logs", "flood", "--kind", "qemu")
			if dropped := strings.Contains(said, "bytes of console.log"); dropped != keeper {
				t.Errorf("keeper %t: QEMU's log says %q", keeper, said)
			}
			h.clearEnded()
			waitNothing(t, h.work)
		}
	})
}
