package launcher

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/launcher/confine"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// box is what QEMU, or a helper, is confined in.
type box struct {
	*confine.Box
	ctx     context.Context
	notice  func(string)
	who     string // QEMU, or the helper
	stage   []string
	try     string // a file that it must not be able to open
	refused string // how the kernel refused that
	ruled   string // how Landlock refused it the root directory
	label   string // its AppArmor profile
	// give lets its user have the VM's files that it needs; nil if it needs none, or this is not
	// root.
	give  func(uid int) error
	early *confine.Early
	// attach puts the process into its control group; nil for none.
	attach func(pid int) error
}

// box is the plan's, for a start; nil if it has none.
func (s *starter) box(who string, c *confine.Box) *box {
	if c == nil {
		return nil
	}
	own := *c // what the kernel refuses is of this start
	own.Foreground = s.opt.Foreground
	if own.UID = s.uids[c]; own.UID != 0 {
		own.Groups = own.DeviceGroups()
	}
	notice := s.opt.Notice
	if notice == nil {
		notice = func(string) {}
	}
	return &box{
		Box: &own, ctx: s.ctx, notice: notice, who: who, stage: s.plan.Facts.Confine.Stage,
		try: s.dir.RecordPath(),
	}
}

// chooseUsers takes ids for QEMU and the helpers, where the plan wants them to have their own.
func (s *starter) chooseUsers() error {
	boxes := []*confine.Box{s.plan.Confinement}
	for i := range s.plan.Helpers {
		boxes = append(boxes, s.plan.Helpers[i].Confinement)
	}
	boxes = slices.DeleteFunc(boxes, func(c *confine.Box) bool { return c == nil || c.Users == nil })
	if len(boxes) == 0 {
		return nil
	}
	users := boxes[0].Users
	busy, err := users.Busy()
	if err != nil {
		return err
	}
	ids, err := s.dir.ReserveUsers(s.ctx, len(boxes), users.First, users.Count, busy)
	if errors.Is(err, rundir.ErrNoUser) {
		return &fault.Error{
			Kind: fault.Host, Op: s.plan.Name, Err: err,
			Fix: "stop a VM, or give vmlatch more ids in /etc/subuid and /etc/subgid",
		}
	}
	s.uids = map[*confine.Box]int{}
	for i, id := range ids {
		s.uids[boxes[i]] = id
	}
	return err
}

// fork starts a program in the box, and returns when it has become that. Where the kernel refuses
// namespaces, as in some containers, it does without them, and says so.
func (b *box) fork(argv []string, files []*os.File) (pid int, err error) {
	pid, err = b.forkOnce(argv, files)
	refused := confine.Refused(err) || errors.Is(err, confine.ErrNoMounts)
	if err != nil && refused && !errors.Is(err, fault.ErrHost) && len(b.Namespaces) > 0 {
		h := confine.Host{Landlock: b.Landlock, NoNamespaces: fmt.Sprintf("none can be made here: %v", err)}
		b.Missing = h.Missing(nil)
		b.Namespaces, b.UID = nil, 0 // another user would not reach its files
		b.notice(b.who + " has fewer walls than planned: " + strings.Join(b.Missing, "; "))
		pid, err = b.forkOnce(argv, files)
	}
	return pid, err
}

func (b *box) forkOnce(argv []string, files []*os.File) (pid int, err error) {
	if b.give != nil {
		if err := b.give(b.UID); err != nil {
			return 0, err
		}
	}
	stage := b.early.Take(b.Box)
	if stage == nil {
		if stage, err = confine.Fork(b.stage, b.Namespaces, b.Foreground); err != nil {
			return 0, err
		}
	}
	defer stage.Close()
	if b.attach != nil { // before it has memory that would be counted elsewhere
		err = b.attach(stage.PID)
	}
	if err == nil {
		err = stage.Enter(b.Box, argv, files, b.try)
	}
	var report confine.Report
	if err == nil {
		report, err = stage.Await(b.ctx)
	}
	if err != nil {
		stage.Kill()
		return 0, err
	}
	b.refused, b.ruled, b.label = report.Refused, report.Ruled, report.Label
	return stage.PID, nil
}

// record is what is written down about the box.
func (b *box) record() *rundir.Confinement {
	return &rundir.Confinement{
		UID: b.UID, Namespaces: b.Namespaces, Landlock: b.Landlock, Refused: b.refused, Missing: b.Missing,
		Ruled: b.ruled, Label: b.label,
		Files: len(b.Files),
	}
}

// confinement looks for what QEMU can be confined with.
func confinement(config *Config, qemu string, s *tee.Spec) *plan.Confinement {
	switch {
	case len(config.Stage) == 0:
		return nil
	case config.Emulate: // its QEMU is not confined: there is nothing to look for
		return &plan.Confinement{Stage: config.Stage}
	}
	c := &plan.Confinement{Stage: config.Stage, Host: confine.Look("/")}
	var err error
	if c.Program, err = confine.Program(qemu); err != nil {
		c.Cannot = "what it needs is not known: " + err.Error()
	}
	const resolver = "/etc/resolv.conf"
	c.Resolver = []string{resolver, "/etc/hosts", "/etc/nsswitch.conf"}
	if real, err := filepath.EvalSymlinks(resolver); err == nil {
		c.Resolver = append(c.Resolver, real)
	}
	if os.Geteuid() != 0 {
		return c
	}
	if c.Users, err = confine.ReadUsers("/"); err != nil {
		c.NoUsers = err.Error()
	}
	if s == nil {
		return c
	}
	g := s.Guest()
	for _, path := range []string{g.Firmware.Image, g.Kernel.Image, g.Kernel.Initrd} {
		if path != "" && private(path) {
			c.Private = append(c.Private, path)
		}
	}
	return c
}

// private reports whether some users of the host cannot read a file, or not reach it.
func private(path string) bool {
	const read, enter = 0o004, 0o001
	info, err := os.Stat(path)
	for need := fs.FileMode(read); err == nil; need = enter {
		if info.Mode()&need == 0 {
			return true
		}
		if path == filepath.Dir(path) {
			return false
		}
		path = filepath.Dir(path)
		info, err = os.Stat(path)
	}
	return false
}
