package launcher

import (
	"os"
	"path/filepath"
	"testing"
)

// The last lines of a log are what QEMU said last, without what does not explain an end.
func TestLastLines(t *testing.T) {
	for name, c := range map[string]struct{ log, want string }{
		"empty":        {"", ""},
		"a name":       {"/usr/bin/qemu-system-x86_64: no such thing\n", "no such thing"},
		"the last":     {"one\n\ntwo\nthree\n", "two; three"},
		"a warning":    {"qemu-system-x86_64: warning: odd\nwhy\n", "why"},
		"the emulator": {"swtee: emulated platform, protects nothing\nwhy\n", "why"},
		"its log": {
			"time=2026-11-27T18:25:16.829Z level=WARN msg=\"cbitpos becomes the processor's own\" emulated=true\nwhy\n",
			"why",
		},
		"a guest's line": {"time=now\n", "time=now"},
	} {
		file := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(file, []byte(c.log), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := lastLines(file, 2); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if got := lastLines(filepath.Join(t.TempDir(), "none"), 2); got != "" {
		t.Errorf("no file: %q", got)
	}
}
