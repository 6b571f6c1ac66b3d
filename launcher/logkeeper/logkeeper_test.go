package logkeeper

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/internal/testdir"
)

func create(t *testing.T, dir, name string) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// numbered is a text of which the newest part can be told.
func numbered(lines int) string {
	var b strings.Builder
	for i := range lines {
		fmt.Fprintf(&b, "line %08d\n", i)
	}
	return b.String()
}

// room is what a file takes on its disk, in bytes.
func room(t *testing.T, f *os.File) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// watched looks at the room that a log takes each time it is read from.
type watched struct {
	io.Reader
	look func()
}

func (w watched) Read(b []byte) (int, error) {
	w.look()
	return w.Reader.Read(b)
}

// TestBound: on a file system that moves a file's rest to its front, and on one that does
// not, a log never takes more room than its bound and keeps its newest part.
func TestBound(t *testing.T) {
	for name, dir := range map[string]string{"disk": t.TempDir(), "memory": testdir.InMemory(t)} {
		t.Run(name, func(t *testing.T) {
			const most = 64 << 10
			f, last := create(t, dir, "console.log"), create(t, dir, "qemu.log")
			text := numbered(100_000)
			var largest int64
			in := watched{strings.NewReader(text), func() { largest = max(largest, room(t, f)) }}
			Run([]*Log{
				{Name: "console.log", To: f, From: in},
				{Name: "qemu.log", To: last, From: strings.NewReader("a word\n")},
			}, most)
			if largest > most || largest < most/2 {
				t.Errorf("it took %d bytes, want up to %d", largest, most)
			}
			begin, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, most*2)
			n, _ := f.ReadAt(b, begin)
			if kept := string(b[:n]); n < most/2 || !strings.HasSuffix(text, kept) {
				t.Errorf("%d bytes are kept, want the newest, at least %d", n, most/2)
			}
			said, _ := os.ReadFile(last.Name())
			if want := fmt.Sprintf("a word\n%s%d bytes of console.log\n", Remark, len(text)-n); string(said) != want {
				t.Errorf("the last log says %q, want %q", said, want)
			}
		})
	}
}

// TestShort: nothing is said where nothing was dropped.
func TestShort(t *testing.T) {
	dir := t.TempDir()
	f, last := create(t, dir, "console.log"), create(t, dir, "qemu.log")
	Run([]*Log{
		{Name: "console.log", To: f, From: iotest.OneByteReader(strings.NewReader("hello"))},
		{Name: "qemu.log", To: last, From: strings.NewReader("")},
	}, 64<<10)
	for file, want := range map[*os.File]string{f: "hello", last: ""} {
		if b, _ := os.ReadFile(file.Name()); string(b) != want {
			t.Errorf("%s has %q, want %q", file.Name(), b, want)
		}
	}
}

// TestFullDisk: what cannot be written is counted, and reading goes on.
func TestFullDisk(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	last := create(t, t.TempDir(), "qemu.log")
	text := bytes.Repeat([]byte("x"), 300<<10)
	in := bytes.NewReader(text)
	Run([]*Log{
		{Name: "console.log", To: full, From: in},
		{Name: "qemu.log", To: last, From: strings.NewReader("")},
	}, 64<<10)
	if in.Len() != 0 {
		t.Errorf("%d bytes were not read", in.Len())
	}
	said, _ := os.ReadFile(last.Name())
	if want := fmt.Sprintf("%d bytes of console.log", len(text)); !strings.Contains(string(said), want) {
		t.Errorf("the last log says %q, want %q in it", said, want)
	}
}
