package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// prefix begins the names of VMs' groups.
const prefix = "vmlatch-"

// Put puts a process, with its threads, into a group of its own that has limits, after
// [Place.Prepare]. It returns the group's directory, which [Remove] removes when the process has
// ended.
func (p *Place) Put(ctx context.Context, vm string, l *Limits, pid int) (dir string, err error) {
	if p.scope {
		if dir, err = p.putInScope(ctx, vm, l, pid); err == nil {
			err = l.holds(dir)
		}
		return dir, err
	}
	dir = p.path(filepath.Join(p.own, prefix+vm))
	// One of an earlier run has its limits.
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return "", fmt.Errorf("%s is there, and in use: %w", dir, err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	for _, f := range append(l.files(), file{"cgroup.procs", strconv.Itoa(pid)}) {
		err := write(dir, f)
		if errors.Is(err, fs.ErrNotExist) && f.name == "memory.swap.max" { // a kernel without swap
			continue
		}
		if err != nil {
			Remove(dir)
			return "", err
		}
	}
	return dir, nil
}

// Prepare gives the groups below this process's the controllers that limits take. It may move this
// process to one of them, which what it starts later is in, too.
func (p *Place) Prepare(l *Limits) error {
	if p.scope {
		return nil
	}
	dir := p.path(p.own)
	missing, err := l.without(filepath.Join(dir, given))
	if err != nil || len(missing) == 0 {
		return err
	}
	control := file{given, "+" + strings.Join(missing, " +")}
	err = write(dir, control)
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	// It has processes: this one and what it has started, which move out of the way.
	own := filepath.Join(dir, leaf)
	if err := os.Mkdir(own, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	pids, _ := p.processes(dir)
	for _, pid := range pids {
		if err := write(own, file{"cgroup.procs", pid}); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	if err = write(dir, control); errors.Is(err, unix.EBUSY) {
		err = fmt.Errorf("%s has other processes than vmlatch: %w", dir, err)
	}
	return err
}

func write(dir string, f file) error {
	// Without O_CREAT: with it a file that the kernel does not have is EACCES, not ENOENT.
	out, err := os.OpenFile(filepath.Join(dir, f.name), os.O_WRONLY, 0)
	if err == nil {
		_, err = out.WriteString(f.text)
		err = errors.Join(err, out.Close())
	}
	if err != nil {
		return fmt.Errorf("%s: %w", f.text, err)
	}
	return nil
}

// holds looks whether the kernel has taken the limits: systemd says nothing of those for which its
// group has no controller.
func (l *Limits) holds(dir string) error {
	for _, f := range l.files() {
		if f.name == "memory.swap.max" {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, f.name))
		text, want := string(b), strings.Fields(f.text)[0]
		switch {
		case err != nil:
			return err
		case f.name == "io.max" && strings.Contains("\n"+text, "\n"+want+" "), // a line for each device
			f.name == "memory.max" && !strings.HasPrefix(text, "max"), // in whole pages
			f.name != "io.max" && strings.HasPrefix(text, want):
		default:
			return fmt.Errorf("%s/%s is %q, and was to be %s", dir, f.name, strings.TrimSpace(text), f.text)
		}
	}
	return nil
}

// attachTime is how long systemd may take to make a scope.
const attachTime = 10 * time.Second

// putInScope has systemd make a scope, which is gone with its last process.
func (p *Place) putInScope(ctx context.Context, vm string, l *Limits, pid int) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, attachTime)
	defer cancel()
	own := fmt.Sprintf("/proc/%d/cgroup", pid)
	before, _ := Of(own)
	unit := prefix + escaped(vm) + ".scope"
	properties := append(l.properties(), property{"PIDs", "au", "1", strconv.Itoa(pid)},
		property{"Description", "s", "Virtual machine " + vm}, property{"CollectMode", "s", "inactive-or-failed"})
	args := []string{
		"--user", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1",
		"org.freedesktop.systemd1.Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "fail",
		strconv.Itoa(len(properties)),
	}
	if !p.user {
		args[0] = "--system"
	}
	args = append(append(args, slices.Concat(properties...)...), "0")
	for {
		out, err := exec.CommandContext(ctx, "busctl", args...).CombinedOutput()
		if err == nil {
			break
		}
		// systemd needs a moment to see that the scope of an earlier run is empty.
		if !strings.Contains(string(out), "already") || ctx.Err() != nil {
			return "", fmt.Errorf("systemd makes no scope %s: %s", unit, strings.TrimSpace(string(out)))
		}
		time.Sleep(20 * time.Millisecond)
	}
	// The job goes on after the answer.
	for delay := time.Millisecond; ; delay = min(2*delay, 50*time.Millisecond) {
		group, ok := Of(own)
		switch {
		case !ok:
			return "", errors.New("QEMU has ended")
		case group != before && strings.HasSuffix(group, "/"+unit):
			return p.path(group), nil
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("systemd has not put QEMU into its scope %s: %w", unit, ctx.Err())
		case <-time.After(delay):
		}
	}
}

// escaped is a VM's name as a part of a unit's (systemd.unit(5)).
func escaped(name string) string { return strings.ReplaceAll(name, "-", `\x2d`) }

// Remove removes a group whose processes have ended; others stay. A scope has been removed by
// systemd.
func Remove(dir string) {
	if base := filepath.Base(dir); !strings.HasPrefix(base, prefix) || strings.HasSuffix(base, ".scope") {
		return
	}
	// A process that has ended leaves its group a moment later.
	for delay := time.Millisecond; delay < 2*time.Second; delay *= 2 {
		if err := unix.Rmdir(dir); !errors.Is(err, unix.EBUSY) {
			return
		}
		time.Sleep(delay)
	}
}
