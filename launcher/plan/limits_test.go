package plan_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
)

// TestLimits: limits are said, and are the kernel's.
func TestLimits(t *testing.T) {
	p := mustPlan(t, "[limits]\nmemory = '576MiB'\ncpu = 1.5\npids = 81\n"+
		"io = [{device = '/dev/a', read = '1MiB', write = '2MiB', read-iops = 3, write-iops = 4}]", testhost.Facts())
	var said []string
	for _, c := range p.Choices {
		if strings.HasPrefix(c.What, "limit of ") {
			said = append(said, c.Value)
		}
	}
	want := []string{"576MiB", "1.5 processors", "81", "/dev/a read 1MiB/s write 2MiB/s read 3/s write 4/s"}
	if !slices.Equal(said, want) {
		t.Errorf("%q, want %q", said, want)
	}
	if l, err := p.Guest.Limits.Of(); err == nil {
		t.Errorf("of a device that is not there: %+v", l)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, os.DevNull} {
		p.Guest.Limits.IO[0].Device = path
		if l, err := p.Guest.Limits.Of(); err == nil || !strings.Contains(err.Error(), "not a block device") {
			t.Errorf("%s: %+v, %v", path, l, err)
		}
	}
	p.Guest.Limits.IO = nil
	l, err := p.Guest.Limits.Of()
	if err != nil || l.Memory != 576<<20 || l.CPU != 1.5 || l.PIDs != 81 || !l.On() {
		t.Errorf("%+v, %v", l, err)
	}
	if p := mustPlan(t, "", testhost.Facts()); p.Guest.Limits.On() {
		t.Errorf("limits of a spec without: %+v", p.Guest.Limits)
	}
}
