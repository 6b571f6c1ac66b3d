package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTail: each line is copied once, although the file's beginning is cut away.
func TestTail(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	var kept strings.Builder // what the file has
	write := func(from, to int) {
		for i := from; i < to; i++ {
			fmt.Fprintf(&kept, "line %06d\n", i)
		}
		if err := os.WriteFile(name, []byte(kept.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cut := func(n int) {
		rest := kept.String()[n:]
		kept.Reset()
		kept.WriteString(rest)
	}
	write(0, 1000)
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out bytes.Buffer
	tail := &tail{f: f, out: &out}
	step := func() {
		t.Helper()
		if err := tail.copy(); err != nil {
			t.Fatal(err)
		}
	}
	step()
	cut(8192)
	write(1000, 1100)
	step()
	cut(4096)
	write(1100, 1101)
	step()
	cut(len(kept.String())) // all of what was copied
	write(1101, 1110)
	step()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 1110 {
		t.Errorf("%d lines, want 1110", len(lines))
	}
	for i, line := range lines {
		if want := fmt.Sprintf("line %06d", i); line != want {
			t.Fatalf("line %d is %q, want %q", i, line, want)
		}
	}
}
