package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// TestTimeline: each step lasts until the next, the last until the guest ran; what a held VM waits
// for is not work.
func TestTimeline(t *testing.T) {
	begun := time.Date(2026, 11, 28, 3, 0, 0, 0, time.UTC)
	at := func(ms int) time.Time { return begun.Add(time.Duration(ms) * time.Millisecond) }
	released := at(1500)
	r := &rundir.Record{
		Name: "a<b", Technology: "sev", Emulated: true, Released: &released,
		Steps: []rundir.Step{
			{Name: "reserve", At: at(0)},
			{Name: "paused", At: at(10)},
			{Name: "measure", At: at(1000)},
			{Name: "release", At: at(1400)},
		},
	}
	for hold, want := range map[bool][]float64{false: {10, 990, 400, 100}, true: {10, 0, 400, 100}} {
		r.Origin.Hold = hold
		l := timelineOf(r)
		for i, x := range l.Steps {
			if x.Took != want[i] || x.At != float64(r.Steps[i].At.Sub(begun).Milliseconds()) {
				t.Errorf("held %v: %+v, want %v ms", hold, x, want[i])
			}
		}
		if l.Took != 1500 {
			t.Errorf("it took %v ms, want 1500", l.Took)
		}
	}
	back := *r
	back.Steps = []rundir.Step{{Name: "reserve", At: at(1000)}, {Name: "fork", At: at(0)}, {Name: "query", At: at(5)}}
	if err := timelineOf(&back).print(&cli.IO{Out: io.Discard}); err != nil {
		t.Errorf("a clock that was set back: %v", err)
	}
	var out bytes.Buffer
	s := &cli.IO{Out: &out, Err: io.Discard}
	if err := timelineOf(r).svg(s); err != nil {
		t.Fatal(err)
	}
	svg := out.String()
	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v in %s", err, svg)
		}
	}
	if !strings.Contains(svg, "emulated") || !strings.Contains(svg, "a&lt;b") || !strings.Contains(svg, "1.50 s") {
		t.Errorf("the picture lacks its title: %s", svg)
	}
	out.Reset()
	if err := timelineOf(r).print(s); err != nil || !strings.Contains(out.String(), "measure  1.00 s   400.0 ms") {
		t.Errorf("%s, %v", out.String(), err)
	}
}

// TestXMLText: a text is what a reader of XML reads, but for what XML cannot hold.
func TestXMLText(t *testing.T) {
	for _, text := range []string{"", "a < b && \"c\" > 'd'", "\x00\x1b[31m\uffff", "ü\t\n"} {
		var got string
		if err := xml.Unmarshal([]byte("<t>"+xmlText(text)+"</t>"), &got); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		want := strings.NewReplacer("\x00", "\ufffd", "\x1b", "\ufffd", "\uffff", "\ufffd").Replace(text)
		if got != want {
			t.Errorf("%q reads as %q, want %q", text, got, want)
		}
	}
}
