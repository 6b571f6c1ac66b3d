// Package leak finds the descriptors and goroutines that a package's tests leave behind.
package leak

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Descriptors counts the open descriptors of this process (proc(5), fd). It does not run
// the garbage collector: a descriptor that only the collector would close is leaked.
func Descriptors(t testing.TB) int {
	t.Helper()
	n, _, err := descriptors()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func descriptors() (n int, names []string, err error) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		name, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil || name == "anon_inode:[eventpoll]" || name == "anon_inode:[eventfd]" {
			continue // the directory itself; the runtime's own
		}
		names = append(names, e.Name()+" "+name)
	}
	return len(names), names, err
}

// VerifyTestMain runs a package's tests with the collector off, and fails if they
// leave a descriptor or a goroutine.
func VerifyTestMain(m *testing.M) {
	debug.SetGCPercent(-1)
	before, _, err := descriptors()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(&counted{m, before})
}

// counted runs a package's tests and then counts the descriptors.
type counted struct {
	m      *testing.M
	before int
}

// Run returns the exit code.
func (c *counted) Run() int {
	code := c.m.Run()
	if code != 0 {
		return code
	}
	var after int
	var names []string
	for range 50 { // goroutines that are about to end may still close some
		if after, names, _ = descriptors(); after <= c.before {
			return 0
		}
		time.Sleep(20 * time.Millisecond)
	}
	fmt.Fprintf(os.Stderr, "%d descriptors are open after the tests, want %d as before:\n", after, c.before)
	for _, name := range names {
		fmt.Fprintln(os.Stderr, name)
	}
	return 1
}
