package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const source = `package p

import "errors"

func F(a int) (int, error) {
	if a < 0 {
		return 0, errors.New("negative")
	}
	b := 1
	b += a
	note(b)
	return b, nil
}

func note(int) {}

func Unreached(x bool) bool { return x && !x }
`

const tests = `package p

import "testing"

func TestF(t *testing.T) {
	if b, err := F(2); b != 3 || err != nil {
		t.Error(b, err)
	}
	if _, err := F(-1); err == nil {
		t.Error("no error")
	}
}
`

func module(t *testing.T) *options {
	t.Helper()
	top := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module p\n\ngo 1.26\n", "p.go": source, "p_test.go": tests} {
		if err := os.WriteFile(filepath.Join(top, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return &options{
		top: top, all: true, jobs: 1, least: 5 * time.Second, workDir: t.TempDir(),
		known: map[string]bool{}, used: map[string]bool{},
	}
}

// TestVerdicts tries every mutant of a small package.
func TestVerdicts(t *testing.T) {
	p, err := newPackage(module(t), ".")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.baseline(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range p.mutants {
		got = append(got, m.what+": "+m.after+": "+[]string{"does not compile", "caught", "survives"}[p.try(m, 0)])
	}
	want := []string{
		"condition negated: if !(a < 0) {: caught",
		"operator swapped: if a <= 0 {: survives",
		"error returned as nil: return 0, nil: does not compile", // errors is not used then
		"assignment dropped: : caught",
		"call dropped: : survives",
		"operator swapped: func Unreached(x bool) bool { return x || !x }: survives",
	}
	if !slices.Equal(got, want) {
		t.Errorf("mutants\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestEquivalent(t *testing.T) {
	o := module(t)
	list := filepath.Join(o.top, "list")
	text := "# zero is never given\np.go\n- if a < 0 {\n+ if a <= 0 {\n"
	if err := os.WriteFile(list, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	if o.known, err = readEquivalent(list); err != nil {
		t.Fatal(err)
	}
	if rate, err := o.mutatePackage("."); err != nil || rate != 50 {
		t.Errorf("%g %% caught, %v, want 50: two of four", rate, err)
	}
	if err := os.WriteFile(list, []byte(text[strings.Index(text, "p.go"):]), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readEquivalent(list); err == nil {
		t.Error("an entry without a reason is taken, want an error")
	}
}
