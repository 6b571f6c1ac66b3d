package newc

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

// TestWrite: an archive has the bytes of the format, for names and data of any length.
func TestWrite(t *testing.T) {
	const header = "070701%ino%mode00000000000000000000000100000000%size00000000000000000000000000000000%name00000000"
	entry := func(ino, mode, size, name, rest string) string {
		return strings.NewReplacer("%ino", ino, "%mode", mode, "%size", size, "%name", name).Replace(header) + rest
	}
	var b bytes.Buffer
	if err := Write(&b, []File{{"ab", ModeDir, nil}, {"ab/c", ModePrivate, []byte("hello")}}); err != nil {
		t.Fatal(err)
	}
	want := entry("00000001", "000041ed", "00000000", "00000003", "ab\x00\x00\x00\x00") +
		entry("00000002", "00008100", "00000005", "00000005", "ab/c\x00\x00hello\x00\x00\x00") +
		entry("00000000", "00000000", "00000000", "0000000b", "TRAILER!!!\x00\x00\x00\x00")
	if b.String() != want {
		t.Errorf("%q\nwant\n%q", b.String(), want)
	}
	for _, name := range []string{"", "/a", "a/", "a//b", "../a/..", "./a"} {
		if err := Write(&b, []File{{name, ModeFile, nil}}); err == nil {
			t.Errorf("%q is a name", name)
		}
	}
	if err := Write(full{}, []File{{"a", ModeFile, make([]byte, 1<<16)}}); !errors.Is(err, errFull) {
		t.Errorf("a disk that is full: %v", err)
	}
}

var errFull = errors.New("full")

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errFull }
