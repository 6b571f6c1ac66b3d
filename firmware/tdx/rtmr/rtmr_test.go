package rtmr

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/evidence/evidencetest"
	"github.com/vmlatch/vmlatch/firmware/tdx/ccel"
)

// TestLoadOptions: what the kernel is started with is what real firmware has logged.
func TestLoadOptions(t *testing.T) {
	var list []struct {
		Cmdline string `json:"cmdline_given"`
		Style   string `json:"style"`
		Initrd  bool   `json:"initrd"`
		Options string `json:"load_options"`
		SHA256  string `json:"sha256"`
	}
	b, err := os.ReadFile("testdata/load-options.json")
	if err == nil {
		err = json.Unmarshal(b, &list)
	}
	if err != nil || len(list) == 0 {
		t.Fatal(len(list), err)
	}
	for _, v := range list {
		p := Profile{suffix: v.Style == "suffix"}
		got := p.options(&Boot{Cmdline: v.Cmdline, HasInit: v.Initrd})
		sum := sha256.Sum256(wide(got))
		if got != v.Options || hex.EncodeToString(sum[:]) != v.SHA256 {
			t.Errorf(
				"%q, %s, initrd %t: %q, %x, want %q, %s",
				v.Cmdline,
				v.Style,
				v.Initrd,
				got,
				sum,
				v.Options,
				v.SHA256,
			)
		}
	}
}

// pe is the smallest image that firmware would start.
func pe(text string) []byte {
	b := make([]byte, 0x200)
	copy(b, "MZ")
	b[0x3c] = 0x40
	copy(b[0x40:], "PE\x00\x00")
	b[0x40+20] = 0xf0 // optional header
	b[0x58], b[0x59] = 0x0b, 0x02
	b[0x58+60], b[0x58+61] = 0, 2 // headers
	return append(b, text...)
}

func boot(cmdline string) *Boot {
	return &Boot{Kernel: pe("kernel"), Initrd: sha512.Sum384([]byte("initrd")), HasInit: true, Cmdline: cmdline}
}

// logOf is the log of a boot.
func logOf(t *testing.T, p Profile, b *Boot) *ccel.Log {
	t.Helper()
	events, err := p.Events(b)
	if err != nil {
		t.Fatal(err)
	}
	l := &ccel.Log{}
	for _, e := range events {
		x := ccel.Event{Register: e.Register, Type: 6, Digest: e.Digest}
		if e.What == LoadOptions {
			x = evidencetest.Hashed(2, 6, wide(p.options(b)))
		}
		l.Events = append(l.Events, x)
	}
	return l
}

// TestPredict: the registers are those of the boot's log, and each input changes one of them.
func TestPredict(t *testing.T) {
	p := Profiles()[0]
	mine := boot("console=ttyS0 quiet")
	one, two, err := p.Predict(mine)
	if err != nil {
		t.Fatal(err)
	}
	if r := logOf(t, p, mine).Replay(); r[1] != one || r[2] != two {
		t.Errorf("RTMR1 %x, RTMR2 %x, want %x, %x", one, two, r[1], r[2])
	}
	for name, c := range map[string]struct {
		change   func(*Boot)
		register int
		want     string
	}{
		"kernel": {func(b *Boot) { b.Kernel = pe("another") }, 1, "RTMR1: kernel is not yours"},
		"command line": {
			func(b *Boot) { b.Cmdline += " init=/bin/sh" }, 2,
			`it was "initrd=initrd console=ttyS0 quiet init=/bin/sh"`,
		},
		"initrd":    {func(b *Boot) { b.Initrd[0] ^= 1 }, 2, "RTMR2: initrd is not yours"},
		"no initrd": {func(b *Boot) { b.HasInit = false }, 2, `"initrd" is missing`},
	} {
		theirs := boot("console=ttyS0 quiet")
		c.change(theirs)
		x, y, err := p.Predict(theirs)
		if err != nil {
			t.Fatal(err)
		}
		if (x != one) != (c.register == 1) || (y != two) != (c.register == 2) {
			t.Errorf("%s: RTMR1 differs: %t, RTMR2: %t, want only RTMR%d", name, x != one, y != two, c.register)
		}
		why, err := p.Explain(mine, logOf(t, p, theirs))
		if err != nil || !strings.Contains(strings.Join(why, "\n"), c.want) {
			t.Errorf("%s: %q, %v, want %q", name, why, err, c.want)
		}
	}
	if why, err := p.Explain(mine, logOf(t, p, mine)); err != nil || len(why) != 0 {
		t.Errorf("nothing differs, and it says %q, %v", why, err)
	}
	more := logOf(t, p, mine)
	more.Events = append(more.Events, evidencetest.Hashed(2, 0xd, []byte("a tool of the host")))
	if why, _ := p.Explain(mine, more); len(why) != 1 || !strings.Contains(why[0], "a tool of the host") {
		t.Errorf("one too many: %q", why)
	}
	if _, _, err := p.Predict(&Boot{Kernel: []byte("ELF")}); err == nil {
		t.Error("a kernel that is not a PE image is measured")
	}
	other, err := ProfileNamed("edk2-2025.05")
	if err != nil {
		t.Fatal(err)
	}
	if _, x, _ := other.Predict(mine); x == two {
		t.Error("profiles do not differ")
	}
	if _, err := ProfileNamed("x"); err == nil ||
		!slices.ContainsFunc(
			Profiles(),
			func(p Profile) bool { return strings.Contains(err.Error(), p.Name) },
		) {
		t.Errorf("an unknown profile: %v, want the known ones", err)
	}
}
