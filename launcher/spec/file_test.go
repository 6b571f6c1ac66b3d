package spec_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/spec"
)

// write makes a file and returns its path.
func write(t *testing.T, name, text string) string {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	path := write(t, filepath.Join(dir, "vm.toml"), "name = 'a'\n")
	link := filepath.Join(dir, "link.toml")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	t.Chdir(filepath.Dir(dir))
	for _, name := range []string{path, link, filepath.Join(filepath.Base(dir), "vm.toml")} {
		var w written
		f, err := spec.Load(name, w.tables())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if w.Name != "a" || f.Path != name || f.Dir != dir {
			t.Errorf(
				"%s: name %q, path %s, directory %s, want a, %s and %s",
				name,
				w.Name,
				f.Path,
				f.Dir,
				name,
				dir,
			)
		}
		if got, want := f.Where(), filepath.Join(dir, filepath.Base(name)); got != want {
			t.Errorf("%s: lies at %s, want %s", name, got, want)
		}
	}
}

func TestAFileMayHaveAMebibyte(t *testing.T) {
	const most = 1 << 20
	path := write(
		t,
		filepath.Join(t.TempDir(), "vm.toml"),
		"name = 'a'"+strings.Repeat("\n", most-len("name = 'a'")),
	)
	var w written
	if _, err := spec.Load(path, w.tables()); err != nil || w.Name != "a" {
		t.Errorf("a file of %d bytes: name %q, %v, want a", most, w.Name, err)
	}
	if err := os.Truncate(path, most+1); err != nil {
		t.Fatal(err)
	}
	if _, err := spec.Load(path, w.tables()); !errors.Is(err, regular.ErrTooLarge) {
		t.Errorf("a file of %d bytes: %v, want %v", most+1, err, regular.ErrTooLarge)
	}
}

// TestFilesThatCannotBeLoaded: the error names the file, once, and the writer of
// a pipe is not waited for.
func TestFilesThatCannotBeLoaded(t *testing.T) {
	dir := t.TempDir()
	pipe, socket, nowhere := filepath.Join(
		dir,
		"pipe",
	), filepath.Join(
		dir,
		"socket",
	), filepath.Join(
		dir,
		"nowhere",
	)
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := errors.Join(unix.Mkfifo(pipe, 0o600), os.Symlink(filepath.Join(dir, "x"), nowhere)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		filepath.Join(dir, "missing"): fs.ErrNotExist, nowhere: fs.ErrNotExist,
		dir: syscall.EISDIR, pipe: regular.ErrNotRegular, socket: regular.ErrNotRegular,
		"/dev/zero": regular.ErrNotRegular,
	} {
		var w written
		_, err := spec.Load(path, w.tables())
		if e := fault.As(err); e == nil || e.Kind != fault.Spec || !errors.Is(err, want) {
			t.Errorf("%s: %v, want an error of kind Spec: %v", path, err, want)
			continue
		}
		if n := strings.Count(err.Error(), path); n != 1 ||
			!strings.HasPrefix(err.Error(), path+": ") {
			t.Errorf("%s is named %d times in %q, want once, at its beginning", path, n, err)
		}
	}
}

func TestKeysOfAFile(t *testing.T) {
	_, f, err := parse(
		"cpus = 1\n[[disk]]\nimage = 'x'\n[[disk]]\nformat = 'raw'\n[limits]\nrate = 1",
	)
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"cpus": "spec", "disk": "spec", "disk.image": "spec", "disk.format": "spec", "limits": "spec",
		"limits.rate": "spec",
		"":            "default", "memory": "default", "limits.burst": "default", "CPUS": "default", "rate": "default",
	} {
		if got := f.From(key); got != want || f.Has(key) != (want == "spec") {
			t.Errorf("%q comes from %q, has it: %t, want %q", key, got, f.Has(key), want)
		}
	}
	for key, want := range map[string]string{
		"cpus": "f.toml:1:1: cpus: 7 is odd", "disk": "f.toml:2:3: disk: 7 is odd", // the first
		"disk.format": "f.toml:5:1: disk.format: 7 is odd", "memory": "f.toml: memory: 7 is odd",
		"": "f.toml: 7 is odd",
	} {
		if e := f.Errorf(key, "%d is %s", 7, "odd"); e.Error() != want || e.Kind != fault.Spec ||
			e.Key != key {
			t.Errorf("%q: %q of kind %d, want %q of kind %d", key, e, e.Kind, want, fault.Spec)
		}
	}
}

func TestErrorsOfValuesWrapTheirCause(t *testing.T) {
	f := &spec.File{Path: "f.toml"}
	if err := f.Errorf("name", "x: %w", fs.ErrExist); !errors.Is(err, fs.ErrExist) {
		t.Errorf("%v is not %v", err, fs.ErrExist)
	}
	for cause, fix := range map[error]string{fs.ErrPermission: fault.FixRead, fs.ErrNotExist: fault.FixPaths} {
		err := f.Unusable("kernel", cause)
		e := fault.As(err)
		if e == nil || e.Kind != fault.Spec || e.Key != "kernel" || e.File != "f.toml" ||
			e.Check != "files-readable" || e.Fix != fix || !errors.Is(err, cause) {
			t.Errorf("%v: %#v, want a check's error about the kernel in f.toml with fix %q", cause, err, fix)
		}
	}
}

func TestPathsStartFromTheSpecsDirectory(t *testing.T) {
	f := &spec.File{Path: "../x/f.toml", Dir: "/specs/x"}
	for path, want := range map[string]string{
		"": "", "a": "/specs/x/a", "./a/../b": "/specs/x/b", "../a": "/specs/a", "/a": "/a", "/a/../b": "/a/../b",
	} {
		if got := f.Abs(path); got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
	if got, want := f.Where(), "/specs/x/f.toml"; got != want {
		t.Errorf("the spec lies at %q, want %q", got, want)
	}
	if got := (&spec.File{Dir: "/specs"}).Where(); got != "" {
		t.Errorf("a spec that was not read from a file lies at %q, want nowhere", got)
	}
}

func TestDemandsOfADiskImage(t *testing.T) {
	dir := t.TempDir()
	f := &spec.File{Path: "vm.toml"}
	image := func(name, demands string) string {
		write(t, filepath.Join(dir, name+spec.DemandsSuffix), demands)
		return filepath.Join(dir, name)
	}
	got, err := f.LoadDemands(filepath.Join(dir, "none"))
	if got != nil || err != nil {
		t.Errorf("an image without demands: %+v, %v, want neither", got, err)
	}
	path := image(
		"good",
		"firmware = 'uefi'\ntechnologies = ['sev-snp', 'tdx']\n[policy]\nsev-snp = ['smt']\n",
	)
	got, err = f.LoadDemands(path)
	if err != nil {
		t.Fatal(err)
	}
	if got.Firmware != "uefi" || strings.Join(got.Technologies, " ") != "sev-snp tdx" ||
		len(got.Policy["sev-snp"]) != 1 || got.File.Path != path+".vmlatch.toml" {
		t.Errorf("%+v of %s, want uefi, sev-snp, tdx and a policy, of %s", got, got.File.Path, path)
	}
	want := path + ".vmlatch.toml:2:1: technologies: x"
	if err := got.Errorf("technologies", "x"); err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
	_, err = f.LoadDemands(image("bad", "firmwar = 'uefi'"))
	if e := fault.As(err); e == nil || e.Line != 1 || e.Fix != `did you mean "firmware"?` ||
		!strings.Contains(e.File, "bad") {
		t.Errorf("an unknown demand: %v, want an error about line 1 of bad, with a near key", err)
	}
}

// TestDemandsThatCannotBeRead are not taken for none: the image's maker wrote some.
func TestDemandsThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	f := &spec.File{Path: "vm.toml"}
	if err := errors.Join(
		os.Symlink("nowhere", filepath.Join(dir, "link.vmlatch.toml")),
		unix.Mkfifo(filepath.Join(dir, "pipe.vmlatch.toml"), 0o600),
		os.Mkdir(filepath.Join(dir, "dir.vmlatch.toml"), 0o700),
	); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "large.vmlatch.toml"), strings.Repeat("\n", 1<<20+1))
	for name, want := range map[string]error{
		"link": fs.ErrNotExist, "pipe": regular.ErrNotRegular, "dir": regular.ErrNotRegular,
		"large": regular.ErrTooLarge,
	} {
		got, err := f.LoadDemands(filepath.Join(dir, name))
		if e := fault.As(err); got != nil || e == nil || e.File != "vm.toml" ||
			!errors.Is(err, want) {
			t.Errorf("%s: %+v, %v, want an error about vm.toml: %v", name, got, err, want)
		}
	}
}
