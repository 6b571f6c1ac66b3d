package host

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKVM(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	device := write("kvm", "")
	for name, c := range map[string]struct {
		device, cpuinfo string
		want            bool
		why             string
	}{
		"intel":       {device, write("intel", "processor\t: 0\nflags\t\t: fpu vmx sse\n"), true, ""},
		"amd":         {device, write("amd", "flags\t\t: fpu svm\n"), true, ""},
		"sandbox":     {device, write("none", "flags\t\t: fpu sse vmx_like\n"), false, "neither vmx nor svm"},
		"no device":   {filepath.Join(dir, "missing"), write("x", "flags : vmx\n"), false, "no such file"},
		"no cpuinfo":  {device, filepath.Join(dir, "missing"), false, "no such file"},
		"other arch":  {device, write("arm", "Features : fp\n"), false, "no processor flags"},
		"empty flags": {device, write("empty", "flags :\n"), false, "neither"},
	} {
		t.Run(name, func(t *testing.T) {
			got, why := kvm(c.device, c.cpuinfo)
			if got != c.want || !strings.Contains(why, c.why) {
				t.Errorf("%t, %q; want %t, %q", got, why, c.want, c.why)
			}
		})
	}
}
