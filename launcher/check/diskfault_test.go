package check

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/launcher/plan"
)

// qcow2 is a header of version 3 that names a backing file.
func qcow2(backing string, edit func([]byte)) string {
	b := make([]byte, 4096)
	be := binary.BigEndian
	copy(b, "QFI\xfb")
	be.PutUint32(b[4:], 3)
	be.PutUint32(b[100:], 104)
	if backing != "" {
		be.PutUint64(b[8:], 1024)
		be.PutUint32(b[16:], uint32(len(backing)))
		copy(b[1024:], backing)
	}
	if edit != nil {
		edit(b)
	}
	return string(b)
}

func TestDiskFault(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	base := file("base.raw", strings.Repeat("x", 512))
	for _, c := range []struct {
		name, content, backing, want string
		readOnly                     bool
	}{
		{name: "plain.qcow2", content: qcow2("", nil)},
		{name: "over.qcow2", content: qcow2(base, nil), backing: base},
		{name: "relative.qcow2", content: qcow2("base.raw", nil), backing: base},
		{name: "prefix.qcow2", content: qcow2("file:base.raw", nil), backing: base},
		{name: "silent.qcow2", content: qcow2("base.raw", nil), want: `backing = "` + base + `"`},
		{name: "nbd.qcow2", content: qcow2("nbd://127.0.0.1:10809/x", nil), want: "opens only files"},
		{name: "json.qcow2", content: qcow2(`json:{"driver":"file"}`, nil), backing: base, want: "opens only files"},
		{
			name: "new.qcow2", content: qcow2("", func(b []byte) { binary.BigEndian.PutUint32(b[4:], 9) }),
			want: "version 9",
		},
		{
			name: "locked.qcow2", content: qcow2("", func(b []byte) { b[35] = 2 }),
			want: "encrypted by QEMU",
		},
		{name: "damaged.qcow2", content: qcow2("", func(b []byte) { b[79] = 2 }), want: "qemu-img check"},
		{name: "readable.qcow2", content: qcow2("", func(b []byte) { b[79] = 2 }), readOnly: true},
	} {
		d := plan.Disk{Image: file(c.name, c.content), Format: "qcow2", Backing: c.backing, ReadOnly: c.readOnly}
		if got := diskFault(&d); !strings.Contains(got, c.want) || (got == "") != (c.want == "") {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
