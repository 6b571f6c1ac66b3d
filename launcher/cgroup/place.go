package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/internal/procfs"
)

// Place is where control groups can be made.
type Place struct {
	root  string // "/", or where a copy of a host's files is
	mount string // of version 2
	own   string // this process's group, from the mount on, or the one above that it has moved from
	scope bool   // systemd makes them
	user  bool   // the user's own one
}

// leaf is the group that this process moves to: a group that has processes can give its controllers
// to no group below it.
const leaf = "vmlatch"

// Find looks for a place; why says what is missing. root is "/", or a copy of a host's files.
func Find(root string) (p *Place, why string) {
	p = &Place{root: root, mount: mountOf(root), user: os.Geteuid() != 0}
	if p.mount == "" {
		return nil, "no control groups of version 2 are mounted"
	}
	own, ok := Of(filepath.Join(root, "proc/self/cgroup"))
	if !ok {
		return nil, "this process's control group cannot be read"
	}
	p.own = own
	if filepath.Base(own) == leaf {
		p.own = filepath.Dir(own)
	}
	_, err := os.Stat(filepath.Join(root, "run/systemd/system"))
	switch systemd := err == nil; {
	case p.delegated():
	case strings.HasSuffix(own, ".service"):
		return nil, "vmlatch runs in a service, whose limits its unit sets"
	case systemd:
		if _, err := exec.LookPath("busctl"); err != nil {
			return nil, "systemd's control groups are made by busctl, which is not installed"
		}
		p.scope = true
	case unix.Access(p.path(p.own), unix.W_OK) != nil:
		return nil, "this user may make no control group below " + p.own
	}
	return p, ""
}

// Lacks says which controllers the kernel does not have here; "" for none.
func (p *Place) Lacks(l *Limits) string {
	at := p.own
	switch {
	case p.scope && p.user: // which its manager was given
		at = fmt.Sprintf("user.slice/user-%d.slice/user@%[1]d.service", os.Geteuid())
	case p.scope:
		at = ""
	}
	missing, err := l.without(filepath.Join(p.path(at), "cgroup.controllers"))
	if err != nil {
		return err.Error()
	}
	if !p.scope {
		if why := p.crowded(l); why != "" {
			return why
		}
	}
	if len(missing) == 0 {
		return ""
	}
	return "control groups of version 2 have no controller for " + strings.Join(missing, ", ") +
		" here; those of version 1 may have it"
}

// given is the file that says which controllers a group gives to those below it.
const given = "cgroup.subtree_control"

// without lists the controllers that the limits take and a group's file does not name.
func (l *Limits) without(file string) (missing []string, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	have := strings.Fields(string(b))
	return slices.DeleteFunc(l.Controllers(), func(c string) bool { return slices.Contains(have, c) }), nil
}

// crowded says what keeps this process's group from giving its controllers to those below it: other
// processes in it, which only the kernel's root group may have.
func (p *Place) crowded(l *Limits) string {
	dir := p.path(p.own)
	if missing, err := l.without(filepath.Join(dir, given)); err == nil && len(missing) == 0 {
		return ""
	}
	if _, err := os.Stat(filepath.Join(dir, "cgroup.type")); err != nil { // the root group has none
		return ""
	}
	if _, others := p.processes(dir); len(others) > 0 {
		return fmt.Sprintf("the control group %s has other processes, such as %s, so that none below it can have"+
			" limits", p.own, others[0])
	}
	return ""
}

// processes are those in a group: this one with those that it has started, such as one that waits
// to become QEMU, and others.
func (p *Place) processes(dir string) (own, others []string) {
	procs, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	self := strconv.Itoa(os.Getpid())
	for pid := range strings.FieldsSeq(string(procs)) {
		status, _ := procfs.Status(filepath.Join(p.root, "proc", pid))
		if pid == self || status["PPid"] == self {
			own = append(own, pid)
		} else {
			others = append(others, pid)
		}
	}
	return own, others
}

// EndsWithSession reports whether a group that is made here ends with the user's last session: the
// user's systemd does, unless it lingers (loginctl(1), enable-linger).
func (p *Place) EndsWithSession() bool {
	if !p.scope || !p.user {
		return false
	}
	u, err := user.LookupId(strconv.Itoa(os.Geteuid()))
	if err != nil {
		return false // a name is what lingering goes by
	}
	_, err = os.Stat(filepath.Join(p.root, "var/lib/systemd/linger", u.Username))
	return errors.Is(err, fs.ErrNotExist)
}

// String says how groups are made.
func (p *Place) String() string {
	switch {
	case p.scope && p.user:
		return "a scope of the user's systemd"
	case p.scope:
		return "a scope of systemd"
	}
	return "a control group below " + p.own
}

func (p *Place) path(group string) string { return filepath.Join(p.mount, group) }

// delegated reports whether systemd has given up this process's group to it.
func (p *Place) delegated() bool {
	for _, name := range []string{"user.delegate", "trusted.delegate"} {
		var b [8]byte
		if n, err := unix.Getxattr(p.path(p.own), name, b[:]); err == nil && string(b[:n]) == "1" {
			return true
		}
	}
	return false
}

// mountOf is where control groups of version 2 are mounted; "" for nowhere (proc(5), mountinfo).
func mountOf(root string) string {
	b, err := os.ReadFile(filepath.Join(root, "proc/self/mountinfo"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		before, after, ok := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if ok && strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 {
			return filepath.Join(root, fields[4])
		}
	}
	return ""
}

// Of is a process's group of version 2, by its /proc/PID/cgroup (cgroups(7)).
func Of(file string) (group string, ok bool) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(string(b)) {
		if group, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return group, true
		}
	}
	return "", false
}
