package host

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// counter makes a QEMU that notes each time it is run.
func counter(t *testing.T) (program string, runs func() int) {
	dir := t.TempDir()
	program, log := filepath.Join(dir, "qemu"), filepath.Join(dir, "log")
	script := "#!/bin/sh\necho run >> " + log + "\n" + playScript(t, "whole")
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return program, func() int {
		b, _ := os.ReadFile(log)
		return strings.Count(string(b), "run")
	}
}

// TestCache: an answer holds until program, boot or KVM's parameters change.
func TestCache(t *testing.T) {
	program, runs := counter(t)
	root := recordOf(t, "milan-snp-on")
	c := Cache{Dir: filepath.Join(t.TempDir(), "cache"), Root: root}
	probe := func(want int, why string) {
		t.Helper()
		q, err := c.Probe(t.Context(), program)
		if err != nil || !q.HasObject("sev-guest", "policy") {
			t.Fatalf("%s: %+v, %v", why, q, err)
		}
		if got := runs(); got != want {
			t.Errorf("%s: QEMU was asked %d times, want %d", why, got, want)
		}
	}
	probe(1, "nothing is known")
	probe(1, "known")
	if q, err := c.Probe(t.Context(), program, "rng-random"); err != nil ||
		!q.HasObject("rng-random", "filename") || runs() != 2 {
		t.Errorf("a type that was not asked for: %+v, %v, %d runs, want 2", q, err, runs())
	}
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	rewrite := func(b []byte) {
		t.Helper()
		if err := errors.Join(os.Remove(program), os.WriteFile(program, b, 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	rewrite(b)
	probe(2, "the same content in a new file")
	probe(2, "and that is known now")
	rewrite(append(b, "# newer\n"...))
	probe(3, "another content")
	for file, why := range map[string]string{
		"proc/sys/kernel/random/boot_id":                        "another boot",
		"sys/module/kvm_amd/parameters/sev_snp":                 "another parameter",
		"sys/module/kvm_amd/parameters/ciphertext_hiding_asids": "one more parameter",
	} {
		was := runs()
		if err := root.write(file, []byte("changed")); err != nil {
			t.Fatal(err)
		}
		probe(was+1, why)
	}
	was := runs()
	for _, spoiled := range []string{"", "{", `{"schema": "vmlatch.qemu/3"}`, `{"schema": "other"}`} {
		if err := os.WriteFile(c.file(program), []byte(spoiled), 0o600); err != nil {
			t.Fatal(err)
		}
		was++
		probe(was, "spoiled: "+spoiled)
	}
}

// TestCacheThatCannotBe costs time, and nothing else.
func TestCacheThatCannotBe(t *testing.T) {
	program, runs := counter(t)
	for what, c := range map[string]Cache{
		"no directory":       {Dir: filepath.Join(program, "not-a-directory")},
		"none wanted":        {},
		"one that is a pipe": {Dir: t.TempDir()},
	} {
		if what == "one that is a pipe" {
			if err := unix.Mkfifo(c.file(program), 0o600); err != nil {
				t.Fatal(err)
			}
			if q := c.load(c.file(program), program, &cacheEntry{}); q != nil {
				t.Errorf("%s: %+v, want no answer", what, q)
			}
			continue
		}
		for range 2 {
			was := runs()
			if q, err := c.Probe(t.Context(), program); err != nil || !q.HasObject("sev-guest") || runs() != was+1 {
				t.Errorf("%s: %+v, %v, asked %d times, want 1", what, q, err, runs()-was)
			}
		}
	}
	if _, err := (Cache{Dir: t.TempDir()}).Probe(t.Context(), program+"-missing"); !errors.Is(err, ErrQEMU) ||
		!errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no program: %v, want ErrQEMU and ErrNotExist", err)
	}
}

// TestCacheOfAnotherProgram: an entry is believed only of the path that it is about.
func TestCacheOfAnotherProgram(t *testing.T) {
	program, runs := counter(t)
	c := Cache{Dir: t.TempDir()}
	if _, err := c.Probe(t.Context(), program); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(c.file(program))
	if err != nil {
		t.Fatal(err)
	}
	b = bytes.ReplaceAll(b, []byte(program), []byte("/other/qemu"))
	if err := os.WriteFile(c.file(program), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Probe(t.Context(), program); err != nil || runs() != 2 {
		t.Errorf("%v, asked %d times, want 2", err, runs())
	}
}

// TestCacheWaitsNoLongerThanItsContext, though another process may ask QEMU for long.
func TestCacheWaitsNoLongerThanItsContext(t *testing.T) {
	program, runs := counter(t)
	c := Cache{Dir: t.TempDir()}
	unlock, err := c.lock(t.Context(), c.file(program))
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Probe(ctx, program); !errors.Is(err, context.DeadlineExceeded) || runs() != 0 {
		t.Errorf("%v, asked %d times, want DeadlineExceeded and 0", err, runs())
	}
}

// TestCacheTogether: of many that need the same answer one asks.
func TestCacheTogether(t *testing.T) {
	program, runs := counter(t)
	c := Cache{Dir: t.TempDir()}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := c.Probe(t.Context(), program); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if runs() != 1 {
		t.Errorf("QEMU was asked %d times, want 1", runs())
	}
	left, _ := filepath.Glob(filepath.Join(c.Dir, ".new-*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
