package host

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/integration/leak"
	"github.com/vmlatch/vmlatch/qmp"
)

// script makes a program from a shell script.
func script(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestAskPassesOptions: those of the caller come after those that every QEMU gets.
func TestAskPassesOptions(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	program := script(t, "echo \"$@\" >"+out+"\n"+playScript(t, "whole"))
	err := Ask(t.Context(), []string{program, "-emulator"}, []string{"-accel", "tcg"},
		func(context.Context, *qmp.Conn) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	line := strings.TrimSpace(string(b))
	if err != nil || !strings.HasPrefix(line, "-emulator -machine none ") || !strings.HasSuffix(line, " -accel tcg") {
		t.Errorf("options %q, %v, want -emulator first and -accel tcg last", line, err)
	}
}

// TestAskEndsQEMU: one that fails, and does not end by itself, is ended at once.
func TestAskEndsQEMU(t *testing.T) {
	begun := time.Now()
	err := Ask(t.Context(), []string{script(t, "exec 3>&-; exec sleep 1000")}, nil,
		func(context.Context, *qmp.Conn) error { return nil })
	if err == nil || strings.Contains(err.Error(), "QEMU:") {
		t.Errorf("%v, want an error without words of QEMU, which wrote none", err)
	}
	if took := time.Since(begun); took > askTimeout*2/3 {
		t.Errorf("took %v, want far less than %v", took, askTimeout)
	}
}

// TestAskLeavesNothingOpen where a QEMU cannot be started.
func TestAskLeavesNothingOpen(t *testing.T) {
	before := leak.Descriptors(t)
	for range 10 {
		if _, err := Probe(t.Context(), "/does/not/exist"); !errors.Is(err, ErrQEMU) {
			t.Fatalf("%v, want ErrQEMU", err)
		}
	}
	if after := leak.Descriptors(t); after > before {
		t.Errorf("%d descriptors are open, want %d as before", after, before)
	}
}

// TestCacheOfAFaultyQEMU: an error is not an answer, and is not kept.
func TestCacheOfAFaultyQEMU(t *testing.T) {
	c := Cache{Dir: filepath.Join(t.TempDir(), "cache"), Root: Root(t.TempDir())}
	for range 2 {
		q, err := c.Probe(t.Context(), fakeQEMU(t, "query-machines"))
		if q != nil || !errors.Is(err, ErrQEMU) {
			t.Errorf("%+v, %v, want ErrQEMU", q, err)
		}
	}
	if kept, _ := filepath.Glob(filepath.Join(c.Dir, "*.json")); len(kept) != 0 {
		t.Errorf("kept: %v, want nothing", kept)
	}
}
