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
	f, err := d.OpenTPM(true)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
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
	if f, err = d.OpenTPM(true); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if err := os.WriteFile(root.TPMState("vm"), []byte("state"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Close()
	d = create() // the VM is dead, and another takes its name
	if f, err = d.OpenTPM(true); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
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
	if f, err = d.OpenTPM(false); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if err := d.Discard(); err != nil {
		t.Errorf("an ephemeral one is not removed: %v", err)
	}
}
