package seed

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"

	"github.com/vmlatch/vmlatch/firmware/firstboot"
)

// TestNoCloud: a seed has its files under their whole names, and nothing is left of how it was
// made.
func TestNoCloud(t *testing.T) {
	dir := t.TempDir()
	files := map[string][]byte{
		firstboot.UserData: bytes.Repeat(
			[]byte("#cloud-config\n"),
			1000,
		), firstboot.MetaData: []byte("instance-id: a\n"), firstboot.NetworkConfig: nil,
	}
	f, err := NoCloud(filepath.Join(dir, "work"), files)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if list, err := os.ReadDir(dir); err != nil || len(list) != 0 {
		t.Errorf("%v is left, %v", list, err)
	}
	fs, err := iso9660.Read(file.New(f, true), 0, 0, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimRight(fs.Label(), "\x00"); got != label {
		t.Errorf("the label is %q", got)
	}
	for name, want := range files {
		in, err := fs.OpenFile("/"+name, os.O_RDONLY)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, err := io.ReadAll(in); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v, want %d", name, len(got), err, len(want))
		}
	}
	if f, err := NoCloud(filepath.Join(dir, "missing/work"), files); err == nil {
		t.Errorf("made %v in no directory", f.Name())
	}
}

// TestCredential: a credential is one string, in memory.
func TestCredential(t *testing.T) {
	f, err := Credential("a.b", []byte("secret\n"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if want := "io.systemd.credential.binary:a.b=c2VjcmV0Cg=="; err != nil || string(b) != want {
		t.Errorf("%q, %v, want %q", b, err, want)
	}
}
