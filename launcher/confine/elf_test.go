package confine

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestImage compares what is read of programs with what the standard library reads.
func TestImage(t *testing.T) {
	programs := []string{"/proc/self/exe"}
	for _, name := range []string{"sh", "ls", "qemu-system-x86_64", "systemctl"} {
		if p, err := exec.LookPath(name); err == nil {
			programs = append(programs, p)
		}
	}
	for _, name := range programs {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := readImage(f)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		e, err := elf.NewFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var loader string
		for _, p := range e.Progs {
			if p.Type == elf.PT_INTERP {
				b := make([]byte, p.Filesz)
				if _, err := p.ReadAt(b, 0); err != nil {
					t.Fatal(err)
				}
				loader = strings.TrimRight(string(b), "\x00")
			}
		}
		var paths []string
		for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
			lists, _ := e.DynString(tag)
			for _, l := range lists {
				paths = append(paths, strings.Split(l, ":")...)
			}
		}
		if got.interpreter != loader || !slices.Equal(got.paths, paths) {
			t.Errorf("%s: %+v, want %q and %q", name, got, loader, paths)
		}
		_ = f.Close()
	}
}

func TestScript(t *testing.T) {
	name := t.TempDir() + "/qemu"
	if err := os.WriteFile(name, []byte("#!/bin/sh\nexec qemu-system-x86_64 \"$@\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if files, err := Program(name); err == nil || !strings.Contains(err.Error(), errELF.Error()) {
		t.Errorf("%v, %v, want it refused", files, err)
	}
}

func FuzzImage(f *testing.F) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(self[:4096])
	f.Add([]byte(elfIdent))
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := readImage(bytes.NewReader(b))
		if err == nil && len(i.interpreter) > 4096 {
			t.Error("a loader's name has no bound")
		}
	})
}
