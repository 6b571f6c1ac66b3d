//go:build apparmor

// This test loads a profile into the kernel: it is built by the integration tests, and runs in a
// guest that runs nothing else.

package confine

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/integration/escape"
)

// TestKernelAppArmor: a box without any other wall, but with a profile, keeps in what the profile
// says; and a profile that is not loaded is left out.
func TestKernelAppArmor(t *testing.T) {
	const policy, security = "/vmlatch-qemu.bin", "/sys/kernel/security"
	_ = unix.Mount("securityfs", security, "securityfs", 0, "")
	if !hasAppArmor("/") {
		t.Fatal("this kernel's AppArmor is off")
	}
	if err := os.MkdirAll(os.TempDir(), 0o755); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	own := filepath.Join(t.TempDir(), "own")
	if err := os.WriteFile(own, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	kept := []string{
		"kill:" + strconv.Itoa(os.Getpid()), "run:" + self, "read:" + security + "/apparmor/profiles",
		"write:/proc/sys/kernel/core_pattern",
	}
	free := []string{"read:" + inMemory, "read:" + own, "write:" + own, "unix:" + socket}
	for _, loaded := range []bool{false, true} {
		if loaded {
			b, err := os.ReadFile(policy)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(security+"/apparmor/.replace", b, 0); err != nil {
				t.Fatal(err)
			}
		}
		said, report := imprison(t, &Box{Label: "vmlatch-qemu"}, "", append(kept, free...)...)
		if (report.Label != "") != loaded {
			t.Errorf("loaded %t: %+v", loaded, report)
		}
		for _, a := range free {
			if said[a] != escape.Done {
				t.Errorf("loaded %t: %s: %s, want it done", loaded, a, said[a])
			}
		}
		for _, a := range kept {
			if got := said[a] == escape.Done; got == loaded {
				t.Errorf("loaded %t: %s: %s", loaded, a, said[a])
			}
		}
	}
}
