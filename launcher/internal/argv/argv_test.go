package argv

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// parse is QEMU's rule, written from its documentation: elements end at a
// single comma, a doubled comma is a comma.
func parse(s string) (out [][2]string) {
	var cur strings.Builder
	flush := func() {
		k, v, _ := strings.Cut(cur.String(), "=")
		out = append(out, [2]string{k, v})
		cur.Reset()
	}
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] != ',':
			cur.WriteByte(s[i])
		case i+1 < len(s) && s[i+1] == ',':
			cur.WriteByte(',')
			i++
		default:
			flush()
		}
	}
	flush()
	return out
}

func FuzzNoValueAddsAnOption(f *testing.F) {
	for _, v := range []string{"plain", "a,b", ",,", "x,if=virtio", "", ",", "a=b", "new\nline", `q"uote`} {
		f.Add(v, v)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		got := parse(New("socket").Set("path", a).Set("id", b).String())
		want := [][2]string{{"socket", ""}, {"path", a}, {"id", b}}
		if len(got) != len(want) {
			t.Fatalf("%q and %q make %d elements: %q", a, b, len(got), got)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("element %d is %q, want %q", i, got[i], want[i])
			}
		}
	})
}

func TestQuoteSurvivesAShell(t *testing.T) {
	args := []string{"a", "", "it's", "two words", "$HOME `x` \"y\" \\", "new\nline", "*", "a,b=c"}
	out, err := exec.Command("sh", "-c", `printf '%s\0' `+Quote(args)).Output()
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	if !slices.Equal(got, args) {
		t.Errorf("a shell reads %q, want %q", got, args)
	}
}

// TestQuoteOnlyWhatNeedsIt: what a shell reads as itself stands bare, of ASCII.
func TestQuoteOnlyWhatNeedsIt(t *testing.T) {
	const bare = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./,:=+@%"
	for r := range rune(0x80) {
		s := string(r)
		want := "'" + s + "'"
		switch {
		case strings.Contains(bare, s):
			want = s
		case s == "'":
			want = `''\'''`
		}
		if got := Quote([]string{s}); got != want {
			t.Errorf("%q is quoted as %s, want %s", s, got, want)
		}
	}
}

func TestNumbering(t *testing.T) {
	var ids IDs
	if a, b, c := ids.New("disk"), ids.New("net"), ids.New("disk"); a != "disk0" || b != "net0" || c != "disk1" {
		t.Errorf("ids %s %s %s", a, b, c)
	}
}

func TestOption(t *testing.T) {
	got := New("socket").Set("path", "/a,b").SetInt("n", 7).SetBool("server", true).SetBool("wait", false).String()
	if want := "socket,path=/a,,b,n=7,server=on,wait=off"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestKey(t *testing.T) {
	if got, want := Key("fd", "3").Set("opaque", "/a,b").String(), "fd=3,opaque=/a,,b"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestJSON(t *testing.T) {
	got := JSON(map[string]any{"b": 1, "a": "<&>\"\n", "c": map[string]any{"x": true}})
	if want := `{"a":"<&>\"\n","b":1,"c":{"x":true}}`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	defer func() {
		if recover() == nil {
			t.Error("a value that cannot be encoded did not panic")
		}
	}()
	JSON(map[string]any{"a": func() {}})
}
