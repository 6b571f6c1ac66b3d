package rtmr

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/evidence/evidencetest"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/tdx/ccel"
)

// acpiEvent is one that measures a table.
func acpiEvent(table string) ccel.Event {
	e := evidencetest.Hashed(0, evPlatformConfig, []byte(table))
	e.Data = []byte(acpiData)
	return e
}

// hardwareLog has RTMR0 as edk2 measures it, as in recorded logs.
func hardwareLog(acpi, order string) *ccel.Log {
	return &ccel.Log{Events: []ccel.Event{
		evidencetest.Hashed(0, 0x8000000a, []byte("Fv")),
		evidencetest.Hashed(0, 0x80000001, []byte("SecureBoot")),
		evidencetest.Hashed(0, 4, make([]byte, 4)),
		acpiEvent(acpi + " rsdp"),
		evidencetest.Hashed(1, 6, []byte("a kernel")),
		acpiEvent(acpi + " tables"),
		acpiEvent(acpi + " loader"),
		evidencetest.Hashed(0, 0x80000002, []byte(order)),
		evidencetest.Hashed(0, 4, make([]byte, 4)),
	}}
}

func profileOf(t testing.TB, l *ccel.Log) (*Hardware, []byte) {
	t.Helper()
	h, err := NewHardware(l)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(h)
	if err == nil {
		h, err = ParseHardware(b)
	}
	if err != nil {
		t.Fatal(err)
	}
	return h, b
}

// TestHoles: what events call themselves is not measured, so they cannot open the profile.
func TestHoles(t *testing.T) {
	relabel := func(change func(l *ccel.Log)) *ccel.Log {
		l := hardwareLog("a", "b")
		change(l)
		return l
	}
	pose := func(l *ccel.Log, i int) { l.Events[i].Type, l.Events[i].Data = evPlatformConfig, []byte(acpiData) }
	for name, l := range map[string]*ccel.Log{
		"Secure Boot poses": relabel(func(l *ccel.Log) { pose(l, 1) }),
		"the separator":     relabel(func(l *ccel.Log) { pose(l, 2) }),
		"a fourth":          relabel(func(l *ccel.Log) { pose(l, 7) }),
		"one place further": relabel(func(l *ccel.Log) { pose(l, 7); l.Events[3].Type = 1 }),
		"only two":          relabel(func(l *ccel.Log) { l.Events[6].Type = 1 }),
		"behind one more":   relabel(func(l *ccel.Log) { l.Events[0] = l.Events[2] }),
		"no separator":      relabel(func(l *ccel.Log) { l.Events[2].Digest[0] ^= 1; l.Events[8].Digest[0] ^= 1 }),
		"nothing in RTMR0":  {},
	} {
		if h, err := NewHardware(l); err == nil {
			t.Errorf("%s: holes %v, want it refused", name, h.Holes())
		}
	}
	h, _ := profileOf(t, hardwareLog("a", "b"))
	if got := h.Holes(); !slices.Equal(got, []int{4, 5, 6}) {
		t.Errorf("holes %v, want those of the ACPI tables", got)
	}
	none := relabel(func(l *ccel.Log) { l.Events = append(l.Events[:3:3], l.Events[7:]...) })
	if h, _ := profileOf(t, none); h.Holes() != nil {
		t.Errorf("without ACPI tables: holes %v", h.Holes())
	}
}

// TestHardware: the host's ACPI tables may change, and nothing else.
func TestHardware(t *testing.T) {
	h, b := profileOf(t, hardwareLog("tables of one host", "BootOrder"))
	if err := h.Match(hardwareLog("tables of another", "BootOrder")); err != nil {
		t.Errorf("other ACPI tables: %v", err)
	}
	moved := hardwareLog("tables of one host", "BootOrder")
	moved.Events[0], moved.Events[1] = moved.Events[1], moved.Events[0]
	fewer := hardwareLog("tables of one host", "BootOrder")
	fewer.Events = fewer.Events[:8]
	more := hardwareLog("tables of one host", "BootOrder")
	more.Events = append(more.Events, evidencetest.Hashed(0, 1, []byte("x")))
	posing := hardwareLog("tables of one host", "another order")
	posing.Events[7].Data = []byte(acpiData) // what an event says of itself plays no part
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
		"one hole more":    strings.Replace(string(b), "]", `,{"hole":"acpi","what":""}]`, 1),
		"holes elsewhere": `{"schema":"latch-rtmr0/1","events":[{"hole":"acpi","what":""},{"hole":"acpi","what":""},` +
			`{"hole":"acpi","what":""}]}`,
		"unknown key": `{"schema":"latch-rtmr0/1","any":true,"events":[{"hole":"acpi","what":""}]}`,
	} {
		if _, err := ParseHardware([]byte(bad)); !errors.Is(err, ErrHardware) {
			t.Errorf("%s: %v, want %v", name, err, ErrHardware)
		}
	}
}

func FuzzParseHardware(f *testing.F) {
	_, b := profileOf(f, hardwareLog("a", "b"))
	f.Add(b)
	f.Fuzz(func(_ *testing.T, b []byte) {
		if h, err := ParseHardware(b); err == nil {
			_ = h.Match(hardwareLog("a", "b"))
		}
	})
}
