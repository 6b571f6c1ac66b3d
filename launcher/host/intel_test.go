package host

import (
	"path/filepath"
	"testing"

	"github.com/vmlatch/vmlatch/keyring"
)

// TestKeyIDs: how many there are is in one MSR, or in another, or in the kernel's log.
func TestKeyIDs(t *testing.T) {
	// IA32_TME_ACTIVATE: enabled; the numbers of bits for key IDs, and of those for TDX.
	const both, tmeOnly = `"0x982": "0x3600000002"`, `"0x982": "0x2"`
	for what, c := range map[string]struct {
		msrs        string
		keyIDs, tdx int
		mktme       Answer
	}{
		"activation":                  {both, 63, 7, Yes},
		"a partition":                 {both + `, "0x87": "0x2000000010"`, 16, 32, Yes},
		"no bits, though a partition": {tmeOnly + `, "0x87": "0x2000000010"`, 16, 32, No},
		"no key IDs":                  {tmeOnly, 0, 0, No},
	} {
		r := recordOf(t, "tdx")
		put(t, r, "recorded/msr.json", "{"+c.msrs+"}")
		put(t, r, "recorded/dmesg.txt", "\n")
		rep, err := Detect(r)
		if err != nil || rep.TME == nil || rep.TDX == nil {
			t.Fatalf("%s: %+v, %v", what, rep, err)
		}
		m := rep.TME
		if m.KeyIDs != c.keyIDs || m.TDXKeyIDs != c.tdx || m.Enabled != Yes || m.MKTME != c.mktme {
			t.Errorf("%s: %+v, want %d key IDs, %d for TDX, enabled, mktme %s", what, *m, c.keyIDs, c.tdx, c.mktme)
		}
		if rep.TDX.KeyIDs != c.tdx { // the log does not tell
			t.Errorf("%s: TDX has %d key IDs, want %d", what, rep.TDX.KeyIDs, c.tdx)
		}
	}
}

// TestNoTME: without it the number of TDX's key IDs is not known.
func TestNoTME(t *testing.T) {
	r := recordOf(t, "tdx")
	put(t, r, "recorded/cpu.json", `{"vendor": "GenuineIntel"}`)
	put(t, r, "recorded/dmesg.txt", "\n")
	rep, err := Detect(r)
	if err != nil || rep.TME != nil || rep.TDX == nil || rep.TDX.KeyIDs != 0 {
		t.Errorf("%+v, %v, want TDX with 0 key IDs and no TME", rep, err)
	}
}

// TestKeysOfThisHost: the kernel is asked, unless it is a record.
func TestKeysOfThisHost(t *testing.T) {
	want := Unknown
	if known, err := keyring.Known(keyring.TypeMKTME); err == nil {
		want = answer(known)
	}
	if got := Root("/").mktmeKeys(); got != want {
		t.Errorf("mktme keys: %s, want %s", got, want)
	}
	if got := Root(t.TempDir()).mktmeKeys(); got != Unknown {
		t.Errorf("mktme keys of a record without: %s, want unknown", got)
	}
}

// TestRecordThatCannotBeWritten is an error, and not half a record.
func TestRecordThatCannotBeWritten(t *testing.T) {
	from := recordOf(t, "milan-snp-on")
	to := Root(filepath.Join(t.TempDir(), "record"))
	put(t, to, "file", "")
	if err := to.write("file/below", nil); err == nil {
		t.Error("a file below a file was written")
	}
	if err := from.recordRest(Root(to.path("file"))); err == nil {
		t.Error("a record below a file was written")
	}
}
