package launcher

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/check"
)

func warnInto(list *[]string) func(check.Result) {
	return func(r check.Result) { *list = append(*list, r.ID) }
}

// withHelper adds a helper to a plan, as a device would.
func (h *machineTest) withHelper(p *Plan, how string) (pidFile string) {
	h.Helper()
	self, err := os.Executable()
	if err != nil {
		h.Fatal(err)
	}
	pidFile = filepath.Join(h.dir, "helper.pid")
	p.AddHelper("test", "a test's helper", func(fd int) []string {
		return []string{self, "helper", how, pidFile, strconv.Itoa(fd)}
	})
	return pidFile
}

// pid waits for a helper to tell its process.
func (h *machineTest) pid(file string) int {
	h.Helper()
	for range 500 {
		if b, err := os.ReadFile(file); err == nil && len(b) > 0 {
			n, err := strconv.Atoi(string(b))
			if err != nil {
				h.Fatal(err)
			}
			return n
		}
		time.Sleep(10 * time.Millisecond)
	}
	h.Fatal("the helper did not start")
	return 0
}

// TestHelperDies: a start whose helper does not come up fails, and says why.
func TestHelperDies(t *testing.T) {
	h := newMachineTest(t)
	p := h.plan(plainGuest)
	file := h.withHelper(p, "dies")
	m, err := p.Start(WithTrace(t.Context(), Trace{Step: func(step string) {
		for pid := 0; step == "query" && (pid == 0 || unix.Kill(pid, 0) == nil); { // until it has been reaped
			time.Sleep(10 * time.Millisecond)
			pid = h.pid(file)
		}
	}}), StartOptions{})
	if err == nil {
		m.Close()
		t.Fatal("it succeeds")
	}
	if !strings.Contains(err.Error(), "helper test ended") || !strings.Contains(err.Error(), "no room at the inn") {
		t.Errorf("error %v, want the helper's end and its words", err)
	}
	h.nothingLeft("after the helper's death")
	p.Helpers[0].Argv[0] = "/nonexistent/helper"
	if _, err := p.Start(t.Context(), StartOptions{}); err == nil ||
		!strings.Contains(err.Error(), "helper test: exec") {
		t.Errorf("a missing program: %v", err)
	}
	h.nothingLeft("without the helper's program")
}

// TestHelperDiesPaused: a guest is not let run without its helper.
func TestHelperDiesPaused(t *testing.T) {
	h := newMachineTest(t)
	p := h.plan(plainGuest)
	file := h.withHelper(p, "follows")
	m, err := p.Start(t.Context(), StartOptions{Hold: true})
	if err != nil {
		t.Fatal(err)
	}
	h.end(m)
	if err := unix.Kill(h.pid(file), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-m.helpers[0].done
	if err := m.Release(t.Context()); err == nil || !strings.Contains(err.Error(), "helper test ended") {
		t.Errorf("release: %v, want the helper's end", err)
	}
	if m.State() != Paused {
		t.Errorf("state %s, want paused", m.State())
	}
}

func textLogger(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
