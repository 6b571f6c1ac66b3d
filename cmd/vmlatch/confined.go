package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher/confine"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// confinement is how QEMU is confined, as its start found it.
type confinement struct {
	UID        int      `json:"uid,omitempty"`
	Namespaces []string `json:"namespaces,omitempty"`
	Files      int      `json:"files"`
	Landlock   int      `json:"landlock,omitempty"`
	Refused    string   `json:"refused,omitempty"`
	Ruled      string   `json:"ruled,omitempty"`
	Label      string   `json:"label,omitempty"`
	Missing    []string `json:"missing,omitempty"`
}

// confined is what is read of QEMU's process while a VM runs.
type confined struct {
	UID          int      `json:"uid"`
	NoNewPrivs   bool     `json:"no-new-privileges"`
	Seccomp      bool     `json:"seccomp"`
	Capabilities bool     `json:"capabilities"`
	Bounded      bool     `json:"bounded"`
	Namespaces   []string `json:"namespaces,omitempty"`
	Label        string   `json:"label,omitempty"`
	ControlGroup string   `json:"cgroup,omitempty"`
}

// lookAt reads how the QEMU of a running VM is confined; nil if it cannot be read.
func lookAt(d *rundir.Dir, v *vmInfo) *confined {
	if v.Status != rundir.Alive || v.Record == nil {
		return nil
	}
	p, err := d.OpenProcess(v.Record.PID)
	if err != nil {
		return nil
	}
	defer p.Close()
	l, err := confine.ReadLive(p.PID)
	if err != nil {
		return nil
	}
	c := confined(*l)
	return &c
}

// walls are rows about a box: what it was at the start, and what it is.
func (v *vmInfo) walls(row func(key, format string, args ...any)) {
	r := v.Record
	if r.Group != "" {
		row("control group", "%s", r.Group)
	}
	if r.Unconfined != "" {
		row("confined", "no: %s", r.Unconfined)
	}
	if c := r.Confinement; c != nil {
		c.rows("", row)
	}
	for _, role := range slices.Sorted(maps.Keys(r.HelpersConfined)) {
		c := r.HelpersConfined[role]
		c.rows(role+" ", row)
	}
	if l := v.Confined; l != nil {
		row("its process now", "%s", l.text())
	}
}

// rows are those of a box; who begins their keys.
func (c *confinement) rows(who string, row func(key, format string, args ...any)) {
	text := fmt.Sprintf("to %d files and directories", c.Files)
	if c.Landlock > 0 {
		text += fmt.Sprintf(", by Landlock %d", c.Landlock)
	}
	if len(c.Namespaces) > 0 {
		text += ", in namespaces of its own: " + strings.Join(c.Namespaces, ", ")
	}
	if c.UID != 0 {
		text += fmt.Sprintf(", as user %d", c.UID)
	}
	if c.Label != "" {
		text += ", by AppArmor's profile " + c.Label
	}
	row(who+"confined", "%s", text)
	if c.Refused != "" {
		text := "opening the VM's record was refused: " + c.Refused
		if c.Ruled != "" {
			text += "; listing / by Landlock: " + c.Ruled
		}
		row(who+"proven at its start", "%s", text)
	}
	for _, m := range c.Missing {
		row(who+"not confined", "%s", m)
	}
}

func (l *confined) text() string {
	parts := []string{fmt.Sprintf("user %d", l.UID)}
	for _, p := range []struct {
		is        bool
		yes, none string
	}{
		{l.Capabilities, "WITH CAPABILITIES", "no capabilities"},
		{l.Bounded, "can gain none", "its bounding set is not empty"},
		{l.NoNewPrivs, "no new privileges", "MAY GAIN PRIVILEGES"},
		{l.Seccomp, "seccomp", "NO seccomp"},
	} {
		if p.is {
			parts = append(parts, p.yes)
		} else {
			parts = append(parts, p.none)
		}
	}
	if len(l.Namespaces) > 0 {
		parts = append(parts, "namespaces of its own: "+strings.Join(l.Namespaces, ", "))
	}
	if l.Label != "" && l.Label != "unconfined" {
		parts = append(parts, "label "+l.Label)
	}
	return strings.Join(parts, ", ")
}

// writeBox shows what a plan confines a process to.
func writeBox(t io.Writer, b *confine.Box) {
	if len(b.Namespaces) > 0 {
		fmt.Fprintf(t, "namespaces\tof its own: %s\n", strings.Join(b.Namespaces, ", "))
	}
	if u := b.Users; u != nil {
		fmt.Fprintf(t, "user\tits own, of %d to %d\n", u.First, u.First+u.Count-1)
	}
	if b.Landlock > 0 {
		fmt.Fprintf(t, "Landlock\tversion %d\n", b.Landlock)
	}
	if b.Label != "" {
		fmt.Fprintf(t, "AppArmor\tprofile %s, if it is loaded\n", b.Label)
	}
	for _, f := range b.Files {
		fmt.Fprintf(t, "%s\t%s\n", f.Access, cli.Escape(f.Path))
	}
	for _, m := range b.Missing {
		fmt.Fprintf(t, "NOT confined\t%s\n", m)
	}
}
