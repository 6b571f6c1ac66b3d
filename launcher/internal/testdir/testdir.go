// Package testdir makes directories for tests that write many small files.
package testdir

import (
	"os"
	"testing"
)

// InMemory returns a directory that is removed after the test, in memory where the
// system has such a place: on a busy disk a thousand small files take seconds. Programs
// may not be executable there.
func InMemory(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "test")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}
