package main

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestSeekLines(t *testing.T) {
	long := strings.Repeat("x", 70<<10) + "\n"
	for text, want := range map[string][3]string{ // the last 0, 1 and 2 lines
		"":                 {"", "", ""},
		"a\n":              {"", "a\n", "a\n"},
		"a\nb\nc\n":        {"", "c\n", "b\nc\n"},
		"a\nb\nc":          {"", "c", "b\nc"},
		"\n\n\n":           {"", "\n", "\n\n"},
		"a\n" + long + "b": {"", "b", long + "b"},
		long + long + long: {"", long, long + long},
	} {
		name := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for n, want := range want {
			f, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := seekLines(f, n); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(f)
			if err != nil || string(got) != want {
				t.Errorf("last %d of %.20q: %.20q, %v, want %.20q", n, text, got, err, want)
			}
			_ = f.Close()
		}
	}
}

func TestNaturally(t *testing.T) {
	want := []string{"a", "d", "d1", "d01", "d2", "d10", "d10a", "d10b2", "d10b10", "e"}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, naturally)
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
