package integration

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vmlatch/vmlatch/integration/qemus"
)

// watched collects what a program prints, and says when it matches.
type watched struct {
	mu   sync.Mutex
	b    bytes.Buffer
	re   *regexp.Regexp
	seen chan struct{} // closed once; nil without re
	once sync.Once
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.b.Write(p)
	if w.re != nil && w.re.Match(w.b.Bytes()) {
		w.once.Do(func() { close(w.seen) })
	}
	return n, err
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

var (
	probeLine = regexp.MustCompile(`vmlatch-guest: probe ([^\r\n]*)`)
	sizeWord  = regexp.MustCompile(`\d{3,} bytes`)
)

// asTheKernels holds the configfs-tsm that a guest has shown against the kernel's own.
func (h *host) asTheKernels(c coco, technology, out string) {
	h.t.Run("configfs-tsm as the kernel's", func(t *testing.T) {
		var got []string
		for _, m := range probeLine.FindAllStringSubmatch(out, -1) {
			got = append(got, sizeWord.ReplaceAllString(m[1], "a report")) // quotes have sizes of their own
		}
		want := c.kernelsTSM(t)[technology]
		if technology == "tdx" { // the rest is about levels, which trust domains do not have
			got = got[:min(len(got), len(want))]
		}
		if len(want) < 20 || !slices.Equal(got, want) {
			t.Errorf("it shows\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

var kernelsTSM = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(top(), ".cache/guest/coco")
	cmd := exec.Command(qemus.Path("10.0"), "-accel", "tcg", "-m", "256", "-nodefaults", "-display", "none",
		"-serial", "stdio", "-no-reboot", "-kernel", filepath.Join(dir, "vmlinuz"),
		"-initrd", filepath.Join(dir, "initrd-tsm.img"), "-append", "console=ttyS0 quiet vmlatch.kernel-tsm")
	out, err := cmd.CombinedOutput()
	return string(out), err
})

// kernelsTSM is what the kernel's own configfs-tsm shows, by technology.
func (c *coco) kernelsTSM(t *testing.T) map[string][]string {
	t.Helper()
	dir := filepath.Dir(c.initrd)
	if why, err := os.ReadFile(filepath.Join(dir, "tsm.unavailable")); err == nil {
		t.Skip(string(bytes.TrimSpace(why)))
	}
	if _, err := os.Stat(filepath.Join(dir, "initrd-tsm.img")); err != nil {
		t.Skipf("%v: run make tsm-module", err)
	}
	if qemus.Path("10.0") == "" {
		qemus.Version(t, "10.0")
	}
	out, err := kernelsTSM()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lines := map[string][]string{}
	for _, m := range regexp.MustCompile(`vmlatch-guest: kernel (sev|tdx) ([^\r\n]*)`).FindAllStringSubmatch(out, -1) {
		lines[m[1]] = append(lines[m[1]], sizeWord.ReplaceAllString(m[2], "a report"))
	}
	return lines
}
