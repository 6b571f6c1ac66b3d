// Package qemus finds the QEMU versions of the test matrix, which "make
// qemu-matrix" prepares under .cache/qemu.
package qemus

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// versions of the matrix, oldest first.
var versions = []string{"7.2", "10.0", "11.1"}

func dir() string {
	_, self, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(self), "../../.cache/qemu")
}

func program(version string) (string, bool) {
	p := filepath.Join(dir(), version, "bin/qemu-system-x86_64")
	_, err := os.Stat(p)
	return p, err == nil
}

// Path is where a version's program is; "" if it is not there.
func Path(version string) string {
	if p, ok := program(version); ok {
		return p
	}
	return ""
}

// EachTPM runs a test as a subtest with the system's swtpm, and with a newer one. The environment
// of its programs needs the path that it gives.
func EachTPM(t *testing.T, test func(t *testing.T, path string)) {
	t.Helper()
	system := os.Getenv("PATH")
	t.Run("system", func(t *testing.T) { test(t, "PATH="+system) })
	t.Run("newer", func(t *testing.T) {
		bin := filepath.Join(dir(), "swtpm/bin")
		if _, err := os.Stat(filepath.Join(bin, "swtpm")); err != nil {
			why, _ := os.ReadFile(filepath.Join(dir(), "swtpm.unavailable"))
			t.Skipf("a newer swtpm is not prepared: run make qemu-matrix %s", bytes.TrimSpace(why))
		}
		test(t, "PATH="+bin+":"+system)
	})
}

// Each runs a test as a subtest on every version, starting with the one that is named.
func Each(t *testing.T, from string, test func(t *testing.T, qemu string)) {
	t.Helper()
	reached := false
	for _, v := range versions {
		if reached = reached || v == from; reached {
			t.Run(v, func(t *testing.T) { test(t, Version(t, v)) })
		}
	}
}

// Version returns a version's program. If the registry does not have it, the test is
// skipped with that reason.
func Version(t testing.TB, version string) string {
	t.Helper()
	if p, ok := program(version); ok {
		return p
	}
	if why, err := os.ReadFile(filepath.Join(dir(), version+".unavailable")); err == nil {
		t.Skipf("QEMU %s cannot be had here: %s", version, bytes.TrimSpace(why))
	}
	t.Skipf("QEMU %s is not prepared: run make qemu-matrix", version)
	return ""
}

// Newest returns the newest version that is installed, for tests that do not need a
// particular one.
func Newest(t testing.TB) string {
	t.Helper()
	for i := len(versions) - 1; i >= 0; i-- {
		if p, ok := program(versions[i]); ok {
			return p
		}
	}
	return Version(t, versions[0])
}
