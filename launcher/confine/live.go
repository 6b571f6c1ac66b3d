package confine

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/launcher/cgroup"
	"github.com/vmlatch/vmlatch/launcher/internal/procfs"
)

// Live is what can be read of how a running process is confined (proc(5)). Nothing shows its
// Landlock rules.
type Live struct {
	UID          int      `json:"uid"`
	NoNewPrivs   bool     `json:"no-new-privileges"`
	Seccomp      bool     `json:"seccomp"`
	Capabilities bool     `json:"capabilities"`         // it has some
	Bounded      bool     `json:"bounded"`              // it can gain none, whatever it starts
	Namespaces   []string `json:"namespaces,omitempty"` // that it does not share with this process
	Label        string   `json:"label,omitempty"`      // AppArmor's or SELinux's
	ControlGroup string   `json:"cgroup,omitempty"`     // of version 2
}

// ReadLive reads a process.
func ReadLive(pid int) (*Live, error) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	status, err := procfs.Status(dir)
	if err != nil {
		return nil, err
	}
	l := &Live{NoNewPrivs: status["NoNewPrivs"] == "1", Seccomp: status["Seccomp"] == "2"}
	if ids := strings.Fields(status["Uid"]); len(ids) > 1 {
		l.UID, _ = strconv.Atoi(ids[1]) // the effective one
	}
	for _, set := range []string{"CapPrm", "CapEff", "CapAmb"} {
		l.Capabilities = l.Capabilities || strings.Trim(status[set], "0") != ""
	}
	l.Bounded = strings.Trim(status["CapBnd"], "0") == ""
	for name, kind := range kinds {
		theirs, err := os.Readlink(dir + "ns/" + kind.file)
		own, _ := os.Readlink("/proc/self/ns/" + kind.file)
		if err == nil && theirs != own {
			l.Namespaces = append(l.Namespaces, name)
		}
	}
	slices.Sort(l.Namespaces)
	if b, err := os.ReadFile(dir + "attr/current"); err == nil {
		l.Label = strings.TrimRight(string(b), "\n\x00")
	}
	l.ControlGroup, _ = cgroup.Of(dir + "cgroup")
	return l, nil
}
