package eventlog_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/eventlog/eventlogtest"
)

var both = []eventlog.Bank{eventlog.SHA1, eventlog.SHA256}

func TestReplay(t *testing.T) {
	locality := eventlogtest.Hashed(0, eventlog.NoAction, "StartupLocality\x00\x03", both...)
	events := []eventlog.Event{
		locality, eventlogtest.Hashed(0, eventlog.CRTMVersion, "\x00\x00", both...),
		eventlogtest.Hashed(7, eventlog.Separator, "\x00\x00\x00\x00", both...),
	}
	log := eventlogtest.Write(both, events...)
	for what, b := range map[string][]byte{
		"bare": log, "padded": slices.Concat(log, bytes.Repeat([]byte{0xff}, 4096)),
		"three bytes of padding": slices.Concat(log, []byte{0xff, 0xff, 0xff}),
	} {
		l, err := eventlog.Parse(b)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if len(l.Events) != 2 || l.Locality != 3 || !slices.Equal(l.Banks, both) ||
			!l.Events[1].Hashes(eventlog.SHA1) {
			t.Errorf("%s: %+v", what, l)
		}
		for _, bank := range both {
			pcrs, err := l.Replay(bank)
			if err != nil {
				t.Fatal(err)
			}
			start := make([]byte, bank.Hash().Size())
			start[len(start)-1] = 3
			if want := bank.Sum(start, bank.Sum([]byte{0, 0})); !bytes.Equal(pcrs[0], want) {
				t.Errorf("%s, %v: PCR 0 is %x, want %x", what, bank, pcrs[0], want)
			}
			if pcrs[17][0] != 0xff || pcrs[16][0] != 0 || pcrs[23][0] != 0 {
				t.Errorf("%v: PCRs 16, 17, 23 begin with %x %x %x", bank, pcrs[16][0], pcrs[17][0], pcrs[23][0])
			}
		}
		const separator = "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969"
		if pcrs, _ := l.Replay(eventlog.SHA256); hex.EncodeToString(pcrs[7]) != separator {
			t.Errorf("PCR 7 is %x, want %s", pcrs[7], separator)
		}
		if _, err := l.Replay(eventlog.SHA384); !errors.Is(err, eventlog.ErrFormat) {
			t.Errorf("a bank that is not there: %v, want ErrFormat", err)
		}
	}
	old, err := eventlog.Parse(eventlogtest.Write(nil, eventlogtest.Hashed(4, eventlog.Action, "x", eventlog.SHA1)))
	if err != nil || len(old.Events) != 1 || !old.Events[0].Hashes(eventlog.SHA1) {
		t.Errorf("a log of TPM 1.2: %+v, %v", old, err)
	}
	lacks, err := eventlog.Parse(
		eventlogtest.Write(both, eventlogtest.Hashed(4, eventlog.Action, "x", eventlog.SHA1)),
	)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lacks.Replay(eventlog.SHA256); !errors.Is(err, eventlog.ErrFormat) {
		t.Errorf("an event without a digest of the bank: %v, want ErrFormat", err)
	}
}

// TestDamaged: every cut and every changed length is refused, or leads elsewhere.
func TestDamaged(t *testing.T) {
	log := eventlogtest.Write(
		both,
		eventlogtest.Hashed(0, eventlog.CRTMVersion, "version", both...),
		eventlogtest.Hashed(4, eventlog.Action, "action", both...),
	)
	whole, err := eventlog.Parse(log)
	if err != nil {
		t.Fatal(err)
	}
	want, err := whole.Replay(eventlog.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, at int, b []byte) {
		t.Helper()
		l, err := eventlog.Parse(b)
		if err != nil && !errors.Is(err, eventlog.ErrFormat) {
			t.Errorf("%s at %d: %v, want ErrFormat", what, at, err)
		}
		if err != nil || len(b) == len(log) {
			return
		}
		if got, err := l.Replay(eventlog.SHA256); err == nil && bytes.Equal(got[0], want[0]) &&
			bytes.Equal(got[4], want[4]) {
			t.Errorf("%s at %d: the log is still taken for whole", what, at)
		}
	}
	for n := range len(log) {
		check("cut", n, log[:n])
	}
	for at := range len(log) - 4 {
		for _, v := range []uint32{0xfffffffe, 0x7fffffff, 0x10000, 0} {
			b := bytes.Clone(log)
			binary.LittleEndian.PutUint32(b[at:], v)
			check("changed", at, b)
		}
	}
	if _, err := eventlog.Parse(make([]byte, eventlog.MaxSize+1)); !errors.Is(err, eventlog.ErrFormat) {
		t.Errorf("a log beyond the bound: %v", err)
	}
}

func TestSays(t *testing.T) {
	name := "B\x00o\x00o\x00t\x000\x000\x000\x000\x00"
	variable := string(
		make([]byte, 16),
	) + "\x08\x00\x00\x00\x00\x00\x00\x00" + "\x02\x00\x00\x00\x00\x00\x00\x00" + name + "xx"
	for what, x := range map[string]struct {
		kind       eventlog.Type
		data, want string
	}{
		"an action":          {eventlog.EFIAction, "Exit Boot Services Invocation", "Exit Boot Services Invocation"},
		"a separator":        {eventlog.Separator, "\x00\x00\x00\x00", ""},
		"a variable":         {eventlog.VariableBoot, variable, "Boot0000"},
		"one cut off":        {eventlog.VariableBoot, variable[:40], ""},
		"one without a name": {eventlog.VariableBoot, "x", ""},
		"a version":          {eventlog.CRTMVersion, "1\x00.\x000\x00\x00\x00", "1.0"},
		"a section":          {eventlog.IPL, ".\x00l\x00i\x00n\x00u\x00x\x00\x00\x00", ".linux"},
		"GRUB's words":       {eventlog.IPL, "grub_cmd: linux", "grub_cmd: linux"},
		"a tag":              {eventlog.EventTag, "\xec\";\x8f\x0d\x00\x00\x00Linux initrd\x00", "Linux initrd"},
		"a short tag":        {eventlog.EventTag, "x", ""},
		"bytes":              {eventlog.FirmwareBlob, "\x00\x00\x82\x00", ""},
	} {
		if got := (&eventlog.Event{Type: x.kind, Data: []byte(x.data)}).Says(); got != x.want {
			t.Errorf("%s: %q, want %q", what, got, x.want)
		}
	}
}

func TestNames(t *testing.T) {
	for _, b := range []eventlog.Bank{eventlog.SHA1, eventlog.SHA256, eventlog.SHA384, eventlog.SHA512} {
		if got, err := eventlog.BankNamed(b.String()); got != b || err != nil {
			t.Errorf("%v: %v, %v", b, got, err)
		}
	}
	if _, err := eventlog.BankNamed("md5"); err == nil {
		t.Error("a bank called md5 is accepted")
	}
	if eventlog.Bank(9).Sum(nil) != nil {
		t.Error("an unknown bank has a digest")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(eventlogtest.Write(both, eventlogtest.Hashed(0, eventlog.CRTMVersion, "version", both...)))
	f.Add(eventlogtest.Write(nil, eventlogtest.Hashed(0, eventlog.Action, "x", eventlog.SHA1)))
	f.Fuzz(func(_ *testing.T, b []byte) {
		if l, err := eventlog.Parse(b); err == nil {
			_, _ = l.Replay(eventlog.SHA256)
			for i := range l.Events {
				_ = l.Events[i].Says()
			}
		}
	})
}
