package advice_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/sev/exchange"
	"github.com/vmlatch/vmlatch/launcher/advice"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/slot"
)

// words are the lines of testdata/words.tsv.
func words(t *testing.T) (list []struct{ cause, text string }) {
	t.Helper()
	b, err := os.ReadFile("testdata/words.tsv")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if strings.HasPrefix(line, "#") {
			continue
		}
		if len(f) != 3 {
			t.Fatalf("%q: has %d fields, want 3", line, len(f))
		}
		list = append(list, struct{ cause, text string }{f[1], f[2]})
	}
	return list
}

// says is an error of a QEMU that wrote something and ended.
func says(text string) error {
	return fmt.Errorf("start: %w", &fault.Error{
		Kind: fault.QEMU, Op: "vm", Err: errors.New("QEMU did not start: qemu-system-x86_64: " + text),
	})
}

// TestWordsOfQEMU: what QEMU writes has the cause and the fix of its row, and each row
// is some words'.
func TestWordsOfQEMU(t *testing.T) {
	rows := advice.Rows()
	hit := make([]bool, len(rows))
	for _, w := range words(t) {
		matches := advice.Matches(says(w.text).Error())
		if len(matches) == 0 {
			t.Errorf("%s: no row matches", w.text)
			continue
		}
		row := rows[matches[0]]
		hit[matches[0]] = true
		if !strings.Contains(row.Cause, w.cause) {
			t.Errorf("%s: cause %q, want one with %q", w.text, row.Cause, w.cause)
		}
		want := advice.Advice{Kind: row.Kind, Cause: row.Cause, Fixes: []string{row.Fix}, Late: row.Late}
		if diff := cmp.Diff(want, advice.For(says(w.text))); diff != "" {
			t.Errorf("%s: advice (-want +got):\n%s", w.text, diff)
		}
	}
	for i, row := range rows {
		if !hit[i] {
			t.Errorf("no words reach the row of %q (%s): an earlier one matches them, or testdata lacks them",
				row.Cause, row.Pattern)
		}
		if row.Pattern == "" || row.Cause == "" || row.Fix == "" {
			t.Errorf("row %d lacks a pattern, a cause or a fix: %+v", i, row)
		}
	}
}

// TestRowsShadowOnlyGeneralOnes: where two rows match the same words, the later is one
// of those that catch what is left.
func TestRowsShadowOnlyGeneralOnes(t *testing.T) {
	general := []string{
		"the secure processor refused a step of the launch", // any status
		"QEMU cannot use the secure processor",              // any failure of QEMU's initialisation
		"the TDX module refused a step of the launch",       // any of its calls
		"the host has not enough free memory for this VM",   // ENOMEM of anything
		"QEMU finds no room for its logs",                   // ENOSPC of anything
	}
	rows := advice.Rows()
	for _, w := range words(t) {
		matches := advice.Matches(says(w.text).Error())
		for _, i := range matches[min(1, len(matches)):] {
			if !slices.Contains(general, rows[i].Cause) && !byStatus(rows[i].Pattern) {
				t.Errorf("%s: also has the cause %q, and neither row is general", w.text,
					rows[i].Cause)
			}
		}
	}
}

// byStatus reports whether a row is about a status of the firmware, whichever command
// returned it: rows of one command come before.
func byStatus(pattern string) bool { return strings.HasPrefix(pattern, `fw_err(?:or)?=`) }

// TestEveryStatusIsExplained: a status of the firmware that QEMU reports has a cause,
// whichever way it is written.
func TestEveryStatusIsExplained(t *testing.T) {
	for status := 1; status <= 24; status++ {
		want := ""
		for _, form := range []string{"fw_error=%d 'x'", "fw_error=%#x 'x'"} {
			text := "sev_launch_update_data: LAUNCH_UPDATE ret=1 " + fmt.Sprintf(form, status)
			a := advice.For(says(text))
			if a.Cause == "" || len(a.Fixes) != 1 {
				t.Errorf("%s: %+v, want a cause and a fix", text, a)
			}
			if form == "fw_error=%d 'x'" {
				want = a.Cause
			} else if a.Cause != want {
				t.Errorf("%s: cause %q, want that of the decimal status, %q", text, a.Cause, want)
			}
		}
	}
}

// TestLateSlots: only what may work in a moment is tried again.
func TestLateSlots(t *testing.T) {
	late := 0
	for _, w := range words(t) {
		a := advice.For(says(w.text))
		if want := w.cause == "no free encryption slot"; a.Late != want {
			t.Errorf("%s: may work in a moment: %t, want %t", w.text, a.Late, want)
		}
		if a.Late {
			late++
		}
	}
	if late == 0 {
		t.Error("no words are about slots that come back late")
	}
}

// TestOtherWordsAreNotExplained: advice must not be about another error.
func TestOtherWordsAreNotExplained(t *testing.T) {
	for _, text := range []string{
		"", "something new", "SNP_LAUNCH_START ret=-5 fw_error=0 ''", "fw_error=", "fw_error=100 'x'", "fw_error=none",
		"fw_error=0xffffffffffff 'x'", "ret=-16",
	} {
		if a := advice.For(says(text)); a.Cause != "" || len(a.Fixes) > 0 || a.Late {
			t.Errorf("%q: %+v, want no advice", text, a)
		}
	}
	// The same words mean nothing where they are not QEMU's.
	for kind := fault.Failure; kind <= fault.NameTaken; kind++ {
		if kind == fault.QEMU {
			continue
		}
		err := &fault.Error{Kind: kind, Err: errors.New("Too many open files")}
		if a := advice.For(err); a.Cause != "" {
			t.Errorf("kind %d: cause %q, want none: they are not QEMU's words", kind, a.Cause)
		}
	}
}

// TestSentinels: each error that is known has a fix and a kind.
func TestSentinels(t *testing.T) {
	want := map[error]fault.Kind{
		slot.ErrNone: fault.Host, exchange.ErrFormat: fault.Spec, rundir.ErrEnded: fault.Failure,
		rundir.ErrNotFound: fault.Failure, rundir.ErrExists: fault.Failure, rundir.ErrBusy: fault.Failure,
		rundir.ErrUnsafe: fault.Host, unix.ENOSPC: fault.Host, unix.EDQUOT: fault.Host, unix.EROFS: fault.Host,
		unix.ENOTDIR: fault.Host, unix.EMFILE: fault.Host, unix.ENFILE: fault.Host, unix.ENOMEM: fault.Host,
		os.ErrPermission: fault.Host,
	}
	for _, err := range advice.Sentinels() {
		if _, ok := want[err]; !ok {
			t.Errorf("%v is known to the table, and not to this test", err)
		}
	}
	seen := map[string]error{}
	for err, kind := range want {
		if !slices.Contains(advice.Sentinels(), err) {
			t.Errorf("%v has no advice", err)
			continue
		}
		for name, e := range map[string]error{
			"itself": err, "wrapped": fmt.Errorf("x: %w", err), "of the launcher": &fault.Error{
				Kind: fault.Failure, Err: err,
			},
		} {
			a := advice.For(e)
			if a.Kind != kind || a.Cause != "" || len(a.Fixes) != 1 || a.Fixes[0] == "" {
				t.Errorf("%v, %s: %+v, want kind %d and one fix", err, name, a, kind)
				continue
			}
			if other := seen[a.Fixes[0]]; other != nil && other != err {
				t.Errorf("%v and %v have the same fix %q", err, other, a.Fixes[0])
			}
			seen[a.Fixes[0]] = err
		}
	}
	for err, like := range map[error]error{
		&fs.PathError{Op: "open", Path: "x", Err: unix.EACCES}: os.ErrPermission, unix.EPERM: os.ErrPermission,
	} {
		if got, want := advice.For(err), advice.For(like); !cmp.Equal(got, want) {
			t.Errorf("%v: %+v, want that of %v, %+v", err, got, like, want)
		}
	}
}

// TestFixesOfErrors: what an error says about itself comes first, then what is known of
// its cause, then what helps with its kind.
func TestFixesOfErrors(t *testing.T) {
	const emulate = `without the hardware, "--emulate" takes the same steps on an emulated platform`
	for name, c := range map[string]struct {
		err  error
		want advice.Advice
	}{
		"no error":        {nil, advice.Advice{}},
		"of another type": {errors.New("x"), advice.Advice{}},
		"without a fix": {
			&fault.Error{Kind: fault.Refused, Err: errors.New("x")}, advice.Advice{Kind: fault.Refused},
		},
		"with a fix": {
			&fault.Error{Kind: fault.Spec, Fix: "a"}, advice.Advice{Kind: fault.Spec, Fixes: []string{"a"}},
		},
		"with several": {&fault.Error{Fix: "a\nb\n\nc\n"}, advice.Advice{Fixes: []string{"a", "b", "c"}}},
		"its own first": {
			&fault.Error{Kind: fault.State, Fix: "a", Err: unix.ENOSPC},
			advice.Advice{Kind: fault.State, Fixes: []string{"a"}},
		},
		"hardware": {
			&fault.Error{Kind: fault.Host, Hardware: true},
			advice.Advice{Kind: fault.Host, Fixes: []string{emulate}},
		},
		"hardware and more": {
			&fault.Error{Kind: fault.Host, Fix: "a", Hardware: true},
			advice.Advice{Kind: fault.Host, Fixes: []string{"a", emulate}},
		},
		"no hardware": {
			&fault.Error{Kind: fault.Host, Fix: "a"}, advice.Advice{Kind: fault.Host, Fixes: []string{"a"}},
		},
		"a spec's": {
			&fault.Error{Kind: fault.Spec, Err: errors.New("x")},
			advice.Advice{Kind: fault.Spec, Fixes: []string{`"vmlatch help spec" describes the file`}},
		},
		"a state's": {
			&fault.Error{Kind: fault.State, Err: errors.New("x")},
			advice.Advice{Kind: fault.State, Fixes: []string{`"vmlatch help states" shows which step follows which`}},
		},
		"QEMU's own fix": {
			&fault.Error{
				Kind: fault.QEMU, Err: errors.New("x"), Fix: "a",
			}, advice.Advice{
				Kind:  fault.QEMU,
				Fixes: []string{"a"},
			},
		},
		"a name that is taken": {&fault.Error{Kind: fault.NameTaken}, advice.Advice{Kind: fault.NameTaken}},
	} {
		if diff := cmp.Diff(c.want, advice.For(c.err)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestDecimal(t *testing.T) {
	for text, want := range map[string]string{
		"fw_error=0x16 'x'": "fw_error=22 'x'", "fw_err='0x17: x'": "fw_err='23: x'",
		"fw_error=22 'x'": "fw_error=22 'x'", "ret=0x16": "ret=0x16",
		"fw_error=0xb fw_error=0x1f": "fw_error=11 fw_error=31",
		"fw_error=0xffffffff ":       "fw_error=4294967295 ", "fw_error=0x100000000 ": "fw_error=0x100000000 ",
	} {
		if got := advice.Decimal(text); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

// TestAdviceNamesTheVM: what can be typed stands there as it can be typed.
func TestAdviceNamesTheVM(t *testing.T) {
	for text, want := range map[string]string{
		"web: ": `"vmlatch restart web"`, "": `"vmlatch restart NAME"`, "not a name: ": `"vmlatch restart NAME"`,
	} {
		a := advice.For(fmt.Errorf(text+"%w", rundir.ErrEnded))
		if len(a.Fixes) != 1 || !strings.Contains(a.Fixes[0], want) {
			t.Errorf("%q: %q, want %s in it", text, a.Fixes, want)
		}
	}
}
