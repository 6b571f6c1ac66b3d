package rtmr

import (
	"crypto/sha512"
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/authenticode/petest"
	"github.com/vmlatch/vmlatch/firmware/bzimage"
	"github.com/vmlatch/vmlatch/firmware/evidence/evidencetest"
	"github.com/vmlatch/vmlatch/firmware/tdx/ccel"
)

func boot(cmdline string) *Boot {
	return &Boot{
		Kernel:  petest.Code("kernel"),
		Initrd:  sha512.Sum384([]byte("initrd")),
		HasInit: true,
		Cmdline: cmdline,
	}
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
			x = evidencetest.Hashed(2, 6, bzimage.LoadOptions(b.Cmdline, b.HasInit, p.suffix))
		}
		l.Events = append(l.Events, x)
	}
	return l
}

// TestPredict: the registers are those of the boot's log, and each input changes one of them.
func TestPredict(t *testing.T) {
	p := Profiles()[0]
	mine := boot("console=ttyS0 quiet")
	mine.Others = []Other{{"it is another", [48]byte{6}}, {"it lacks the token", [48]byte{7}}}
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
		"kernel": {func(b *Boot) { b.Kernel = petest.Code("another") }, 1, "RTMR1: kernel is not yours"},
		"command line": {
			func(b *Boot) { b.Cmdline += " init=/bin/sh" }, 2,
			`it was "initrd=initrd console=ttyS0 quiet init=/bin/sh"`,
		},
		"initrd":       {func(b *Boot) { b.Initrd[0] ^= 1 }, 2, "RTMR2: initrd is not yours"},
		"known initrd": {func(b *Boot) { b.Initrd = [48]byte{7} }, 2, "initrd is not yours: it lacks the token"},
		"no initrd":    {func(b *Boot) { b.HasInit = false }, 2, `"initrd" is missing`},
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
