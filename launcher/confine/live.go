package confine

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/launcher/cgroup"
)

// Live is what can be read of how a running process is confined (proc(5)). Nothing shows its
// Landlock rules.
type Live struct {
	UID          int      `json:"uid"`
	NoNewPrivs   bool     `json:"no-new-privileges"`
	Seccomp      bool     `json:"seccomp"`
	Capabilities bool     `json:"capabilities"`         // it has some
	Namespaces   []string `json:"namespaces,omitempty"` // that it does not share with this process
	Label        string   `json:"label,omitempty"`      // AppArmor's or SELinux's
	ControlGroup string   `json:"cgroup,omitempty"`     // of version 2
}

// ReadLive reads a process.
func ReadLive(pid int) (*Live, error) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	f, err := os.Open(dir + "status")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	l := &Live{}
	for s := bufio.NewScanner(f); s.Scan(); {
		key, value, _ := strings.Cut(s.Text(), ":")
		value = strings.TrimSpace(value)
		switch key {
		case "Uid":
			fields := strings.Fields(value)
			if len(fields) > 1 {
				l.UID, _ = strconv.Atoi(fields[1])
			}
		case "NoNewPrivs":
			l.NoNewPrivs = value == "1"
		case "Seccomp":
			l.Seccomp = value == "2"
		case "CapPrm", "CapEff", "CapAmb":
			l.Capabilities = l.Capabilities || strings.Trim(value, "0") != ""
		}
	}
	for name, file := range map[string]string{User: "user", Mount: "mnt", Network: "net", IPC: "ipc", PID: "pid"} {
		theirs, err := os.Readlink(dir + "ns/" + file)
		own, _ := os.Readlink("/proc/self/ns/" + file)
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
