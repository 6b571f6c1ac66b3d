package host

import (
	"strings"
	"testing"
)

func TestLastWords(t *testing.T) {
	var l lastWords
	for range 1000 {
		if n, err := l.Write([]byte(strings.Repeat("flood ", 3000))); n != 18000 || err != nil {
			t.Fatalf("%d, %v, want all of it taken", n, err)
		}
	}
	for _, c := range "the end\n" {
		if _, err := l.Write([]byte(string(c))); err != nil {
			t.Fatal(err)
		}
	}
	if got := l.String(); len(got) > maxWords || !strings.HasSuffix(got, "flood the end") || cap(l.b) > 4*maxWords {
		t.Errorf(
			"%d bytes in %d, that end with %q, want the last %d",
			len(got),
			cap(l.b),
			got[max(0, len(got)-20):],
			maxWords,
		)
	}
}
