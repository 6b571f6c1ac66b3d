package host

import (
	"os"
	"strings"
	"testing"
)

func TestKVM(t *testing.T) {
	for name, c := range map[string]struct {
		cpuinfo string // "-": no such file
		device  bool
		want    bool
		why     string
	}{
		"intel":       {"processor\t: 0\nflags\t\t: fpu vmx sse\n", true, true, ""},
		"amd":         {"flags\t\t: fpu svm\n", true, true, ""},
		"sandbox":     {"flags\t\t: fpu sse vmx_like\n", true, false, "neither vmx nor svm"},
		"no device":   {"flags : vmx\n", false, false, "/dev/kvm: no such file"},
		"no cpuinfo":  {"-", true, false, "no such file"},
		"other arch":  {"Features : fp\n", true, false, "no processor flags"},
		"empty flags": {"flags :\n", true, false, "neither"},
	} {
		t.Run(name, func(t *testing.T) {
			r := Root(t.TempDir())
			if c.device {
				if err := r.write("dev/kvm", nil); err != nil {
					t.Fatal(err)
				}
			}
			if c.cpuinfo != "-" {
				if err := r.write("proc/cpuinfo", []byte(c.cpuinfo)); err != nil {
					t.Fatal(err)
				}
			}
			got, why := r.kvm()
			if got != c.want || !strings.Contains(why, c.why) {
				t.Errorf("%t, %q; want %t, %q", got, why, c.want, c.why)
			}
		})
	}
	if os.Geteuid() != 0 {
		r := Root(t.TempDir())
		if err := os.WriteFile(r.path("kvm"), nil, 0); err != nil {
			t.Fatal(err)
		}
		if err := r.access("kvm"); err == nil {
			t.Error("a device without permissions can be used")
		}
	}
}
