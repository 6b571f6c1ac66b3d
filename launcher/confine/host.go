package confine

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Host is what a kernel can do to confine a process.
type Host struct {
	Landlock int // version of the rules; 0 for none
	// NoNamespaces says why this user can make none; "" if it can.
	NoNamespaces string
	AppArmor     bool // is on
}

// Look asks the running kernel. root is the directory of its files, "/" but in tests.
func Look(root string) Host {
	return Host{
		Landlock: version(), NoNamespaces: noNamespaces(root, os.Geteuid()), AppArmor: hasAppArmor(root),
	}
}

// noNamespaces reads what forbids user namespaces (namespaces(7); Debian, Ubuntu: sysctls of their
// kernels). What a container's seccomp filter forbids shows only when it is tried.
func noNamespaces(root string, uid int) string {
	read := func(name string) string {
		b, _ := os.ReadFile(filepath.Join(root, "proc/sys", name))
		return strings.TrimSpace(string(b))
	}
	if _, err := os.Stat(filepath.Join(root, "proc/self/ns/user")); err != nil {
		return "this kernel has no user namespaces"
	}
	if n, err := strconv.Atoi(read("user/max_user_namespaces")); err == nil && n == 0 {
		return "user.max_user_namespaces is 0"
	}
	if uid == 0 {
		return ""
	}
	if read("kernel/unprivileged_userns_clone") == "0" {
		return "kernel.unprivileged_userns_clone is 0"
	}
	if read("kernel/apparmor_restrict_unprivileged_userns") == "1" && !hasProfile(root) {
		return "kernel.apparmor_restrict_unprivileged_userns is 1, and no profile allows them for this program"
	}
	return ""
}

// hasProfile reports whether AppArmor has a profile for this program: its package brings one, which
// allows it namespaces.
func hasProfile(root string) bool {
	b, err := os.ReadFile(filepath.Join(root, "proc/self/attr/current"))
	label, _, _ := strings.Cut(strings.TrimRight(string(b), "\n\x00"), " ")
	return err == nil && label != "" && label != "unconfined"
}

// version asks for the version of Landlock; 0 if the kernel has none, or it is switched off.
func version() int {
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(v)
}

// Missing says what a process in a box with these namespaces could do on this host all the same, a
// sentence each.
func (h Host) Missing(namespaces []string) (list []string) {
	if h.NoNamespaces != "" {
		list = append(list, "it can reach this user's sockets, as those of the session, and the host's networks: "+
			"it has no namespaces of its own, as "+h.NoNamespaces)
	}
	const (
		off = "this kernel has no Landlock, or it is switched off (lsm=landlock,…)"
		old = "this kernel's Landlock does not keep signals in (Linux 6.12)"
	)
	signals := "" // why they are not kept in
	switch {
	case h.Landlock == 0 && h.NoNamespaces != "":
		list = append(list, "it can open every file of this user: "+off)
	case h.Landlock == 0:
		list, signals = append(list, "it can write to files that it may read: "+off), off
	case h.Landlock < 6:
		signals = old
	}
	if signals != "" && !slices.Contains(namespaces, PID) {
		list = append(list, "it can end other processes of this user: "+signals)
	}
	return list
}
