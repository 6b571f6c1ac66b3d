package plan_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/keyring"
	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
)

// TestKeyStandsInOnePlace: the handle of a key replaces its own mark, and no text that
// a user wrote.
func TestKeyStandsInOnePlace(t *testing.T) {
	const text = `
cpu = "@key@"
device = [{driver = "a", x = "@key@"}]
object = [{qom-type = "b", id = "y", z = "@key@"}]
[firmware]
image = "f"
[confidential]
technology = "mktme"
mktme = { object = "mktme-guest", handle-property = "key-handle" }
[latch]
until = "nothing"`
	facts := testhost.Facts()
	facts.Info.Objects["mktme-guest"] = []string{"key-handle"}
	p := mustPlan(t, text, facts)
	if p.Key == nil || p.Key.Type != keyring.TypeMKTME || p.Key.Description != "vmlatch:vm" {
		t.Fatalf("key %+v, want one of type %s for vmlatch:vm", p.Key, keyring.TypeMKTME)
	}
	before := slices.Clone(p.Argv)
	got := p.Key.Command(p.Argv, 42)
	const object = `{"id":"cgs0","key-handle":"@key@","qom-type":"mktme-guest"}`
	want := slices.Clone(before)
	want[slices.Index(want, object)] = strings.Replace(object, `"@key@"`, "42", 1)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("command line (-want +got):\n%s", diff)
	}
	if !slices.Equal(p.Argv, before) {
		t.Error("the plan's own command line changed")
	}
	for _, argv := range [][]string{{object}, {"-device", object}, {"-object", "x" + object}, {"-object"}, nil} {
		if got := p.Key.Command(argv, 42); !slices.Equal(got, argv) {
			t.Errorf("%q became %q, want it unchanged: there is no object for the key", argv, got)
		}
	}
}

// TestMissing: files that QEMU could not read, each with its use and its cause. Nothing
// waits for the writer of a pipe.
func TestMissing(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	l, err := net.Listen("unix", path("socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := errors.Join(
		os.WriteFile(path("file"), nil, 0o600), unix.Mkfifo(path("pipe"), 0o600),
		os.Symlink("file", path("link")), os.Symlink("x", path("nowhere")),
	); err != nil {
		t.Fatal(err)
	}
	const neither = "neither a regular file nor a block device"
	for name, want := range map[string]string{
		"file": "", "link": "", "missing": "no such file", "nowhere": "no such file", "pipe": neither,
		".": "is a directory", "socket": "no such device or address",
		"/dev/null": neither, "file/x": "not a directory",
	} {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		p := mustPlan(t, "disk = [{image = '"+name+"'}]", testhost.Facts())
		before := descriptors(t)
		missing := p.Missing()
		if want == "" {
			if len(missing) > 0 {
				t.Errorf("%s: %v, want nothing missing", name, missing)
			}
			continue
		}
		if len(missing) != 1 || !strings.Contains(missing[0].Error(), want) ||
			!strings.Contains(missing[0].Error(), "disk: open "+name) {
			t.Errorf("%s: %v, want one error of the disk with %q", name, missing, want)
		}
		if after := descriptors(t); after != before {
			t.Errorf("%s: %d descriptors are open, want %d as before", name, after, before)
		}
	}
	p := mustPlan(t, sevSpec, testhost.Facts())
	var uses []string
	for _, err := range p.Missing() {
		use, _, _ := strings.Cut(strings.TrimPrefix(err.Error(), "vm.toml: "), ":")
		uses = append(uses, use)
	}
	if want := []string{"firmware", "kernel", "initrd", "owner-cert", "session"}; !slices.Equal(uses, want) {
		t.Errorf("a guest of which no file is there lacks %q, want %q", uses, want)
	}
	if n := len(p.Missing()); n != 5 || len(p.Files) != 3 {
		t.Errorf("looked at again %d are missing of %d, want 5 of 3 and the owner's", n, len(p.Files))
	}
}

// TestCommandLineOfAPlan can be typed, and has the emulator before QEMU.
func TestCommandLineOfAPlan(t *testing.T) {
	f := testhost.Facts(testhost.Emulated("/usr/bin/swtee", "--platform", "/p q", "--"))
	p := mustPlan(t, sevSpec, f)
	const want = "/usr/bin/swtee \\\n    --platform '/p q' \\\n    -- /usr/bin/qemu-system-x86_64 \\\n    -name" +
		" guest=vm \\\n"
	if got := p.CommandLine(); !strings.HasPrefix(got, want) {
		t.Errorf("%s, want it to begin with %s", got, want)
	}
	if got := p.QEMUArgv(); got[0] != "/usr/bin/qemu-system-x86_64" || len(got) != len(p.Argv)-4 {
		t.Errorf("without the emulator: %q, want QEMU first", got)
	}
	b, err := json.Marshal(p)
	if err != nil || !p.Emulated || !bytes.Contains(b, []byte(`"schema":"vmlatch.plan/1"`)) {
		t.Errorf("emulated %t, %s, %v, want an emulated plan of schema vmlatch.plan/1", p.Emulated, b, err)
	}
}
