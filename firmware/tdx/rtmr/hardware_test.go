package rtmr

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/evidence/evidencetest"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/tdx/ccel"
)

func hardwareLog(acpi, order string) *ccel.Log {
	tables := evidencetest.Hashed(0, 0x8000000a, []byte(acpi))
	tables.Data = []byte(acpiData)
	return &ccel.Log{Events: []ccel.Event{
		evidencetest.Hashed(0, 0x80000001, []byte("SecureBoot")),
		tables,
		evidencetest.Hashed(1, 6, []byte("a kernel")),
		evidencetest.Hashed(0, 0x80000002, []byte(order)),
	}}
}

// TestHardware: the host's ACPI tables may change, and nothing else.
func TestHardware(t *testing.T) {
	b, err := json.Marshal(NewHardware(hardwareLog("tables of one host", "BootOrder")))
	if err != nil {
		t.Fatal(err)
	}
	h, err := ParseHardware(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Match(hardwareLog("tables of another", "BootOrder")); err != nil {
		t.Errorf("other ACPI tables: %v", err)
	}
	moved := hardwareLog("tables of one host", "BootOrder")
	moved.Events[0], moved.Events[1] = moved.Events[1], moved.Events[0]
	fewer := hardwareLog("tables of one host", "BootOrder")
	fewer.Events = fewer.Events[:3]
	more := hardwareLog("tables of one host", "BootOrder")
	more.Events = append(more.Events, evidencetest.Hashed(0, 1, []byte("x")))
	posing := hardwareLog("tables of one host", "another order")
	posing.Events[3].Data = []byte(acpiData) // what an event says of itself plays no part
	for name, l := range map[string]*ccel.Log{"moved": moved, "fewer": fewer, "more": more, "posing": posing} {
		if e := refusal.Of(h.Match(l)); e == nil || e.Reason != refusal.RTMR {
			t.Errorf("%s: %v, want %s", name, e, refusal.RTMR)
		}
	}
	for name, bad := range map[string]string{
		"empty": "", "another schema": strings.Replace(string(b), "rtmr0/1", "rtmr0/2", 1),
		"no events":    `{"schema":"latch-rtmr0/1","events":[]}`,
		"short digest": `{"schema":"latch-rtmr0/1","events":[{"digest":"00","what":""}]}`,
		"another hole": `{"schema":"latch-rtmr0/1","events":[{"hole":"boot","what":""}]}`,
		"a hole and digest": `{"schema":"latch-rtmr0/1","events":[{"hole":"acpi","digest":"` +
			strings.Repeat("0", 96) + `","what":""}]}`,
		"another hole with a digest": `{"schema":"latch-rtmr0/1","events":[{"hole":"no","digest":"` +
			strings.Repeat("0", 96) +
			`","what":""}]}`,
		"something behind": string(b) + "{}",
		"unknown key":      `{"schema":"latch-rtmr0/1","any":true,"events":[{"hole":"acpi","what":""}]}`,
	} {
		if _, err := ParseHardware([]byte(bad)); !errors.Is(err, ErrHardware) {
			t.Errorf("%s: %v, want %v", name, err, ErrHardware)
		}
	}
}

func FuzzParseHardware(f *testing.F) {
	b, _ := json.Marshal(NewHardware(hardwareLog("a", "b")))
	f.Add(b)
	f.Fuzz(func(_ *testing.T, b []byte) {
		if h, err := ParseHardware(b); err == nil {
			_ = h.Match(hardwareLog("a", "b"))
		}
	})
}
