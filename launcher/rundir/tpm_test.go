package rundir_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// TestTPMDirectory: it is private, is not taken from others, and is removed on purpose only.
func TestTPMDirectory(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	root := rundir.Root{Run: filepath.Join(dir, "run"), State: filepath.Join(dir, "state")}
	create := func() *rundir.Dir {
		t.Helper()
		d, err := root.Create(ctx, "vm")
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	d := create()
	path := d.TPMPath()
	fill := func(dir *os.File) error {
		return os.WriteFile(filepath.Join(dir.Name(), filepath.Base(root.TPMState("vm"))), []byte("state"), 0o600)
	}
	makeTPM := func(persistent bool) {
		t.Helper()
		if err := d.MakeTPM(ctx, persistent, fill); err != nil {
			t.Fatal(err)
		}
		f, err := d.OpenTPM(persistent)
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	refuses := errors.New("no TPM today")
	if err := d.MakeTPM(ctx, true, func(*os.File) error { return refuses }); !errors.Is(err, refuses) {
		t.Errorf("%v, want %v", err, refuses)
	}
	if left, _ := filepath.Glob(path + "*"); len(left) > 0 {
		t.Errorf("one that could not be made leaves %v", left)
	}
	makeTPM(true)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v, want 0700", info.Mode(), err)
	}
	if err := d.Discard(); err != nil { // a launch that failed
		t.Fatal(err)
	}
	if has, err := root.HasTPM("vm"); has || err != nil {
		t.Errorf("a launch that failed leaves its TPM: %t, %v", has, err)
	}

	d = create()
	if err := os.MkdirAll(path+".new", 0o700); err != nil { // of a launch that was killed
		t.Fatal(err)
	}
	makeTPM(true)
	d.Close()
	d = create() // the VM is dead, and another takes its name
	fill = func(*os.File) error { t.Error("a TPM that is there is made again"); return nil }
	makeTPM(true)
	if err := d.Discard(); err != nil {
		t.Fatal(err)
	}
	if has, err := root.HasTPM("vm"); !has || err != nil {
		t.Errorf("a launch that failed takes an older TPM along: %t, %v", has, err)
	}
	if err := root.Forget(ctx, "vm"); !errors.Is(err, rundir.ErrTPM) {
		t.Errorf("Forget: %v, want ErrTPM", err)
	}
	if err := os.WriteFile(filepath.Join(path, "yours"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := root.ForgetTPM(ctx, "vm"); err == nil {
		t.Error("a directory with other files is removed")
	}
	_ = os.Remove(filepath.Join(path, "yours"))
	if err := root.ForgetTPM(ctx, "vm"); err != nil {
		t.Fatal(err)
	}
	if err := root.ForgetTPM(ctx, "vm"); !errors.Is(err, rundir.ErrNotFound) {
		t.Errorf("twice: %v, want ErrNotFound", err)
	}
	if err := os.MkdirAll(path+".new", 0o700); err != nil { // of an import that was killed
		t.Fatal(err)
	}
	if err := root.Forget(ctx, "vm"); err != nil {
		t.Errorf("what an import left behind stays: %v", err)
	}
	if err := root.ForgetTPM(ctx, "../vm"); err == nil {
		t.Error("a name that is a path is accepted")
	}

	// What others could read, or a link, is refused.
	d = create()
	defer d.Close()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := d.OpenTPM(true); !errors.Is(err, rundir.ErrUnsafe) {
		t.Errorf("a directory that others can read: %v, want ErrUnsafe", err)
	}
	if err := errors.Join(os.Remove(path), os.Symlink(dir, path)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.OpenTPM(true); err == nil {
		t.Error("a link is followed")
	}
	fill = func(dir *os.File) error { return os.WriteFile(filepath.Join(dir.Name(), ".lock"), nil, 0o600) }
	makeTPM(false)
	if err := d.Discard(); err != nil {
		t.Errorf("an ephemeral one is not removed: %v", err)
	}
}
