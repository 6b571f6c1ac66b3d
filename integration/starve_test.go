package integration

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const smallSpec = "memory = \"32MiB\"\naccel = \"tcg\"\n"

// startOrNothing starts vm.toml, and reports whether that failed. If so, the output
// must have the reason and a hint, and nothing may be left.
func (h *host) startOrNothing(reason string, under ...string) bool {
	t := h.t
	t.Helper()
	cmd := h.command("vmlatch", "start", "vm.toml", "--hold")
	if len(under) > 0 {
		cmd = wrapped(cmd, under[0], under[1:]...)
	}
	out, err := h.attempt(cmd)
	if err == nil {
		h.run("vmlatch", "stop", "vm", "--now")
		if h.room != nil { // for the record of the VM that has ended
			h.room()
			h.run("vmlatch", "ps")
		}
		h.clearEnded()
		waitNothing(t, h.work)
		return false
	}
	if !strings.Contains(strings.ToLower(out), reason) || !strings.Contains(out, "hint: ") {
		t.Errorf("%v: the reason %q and a hint are not in: %s", under, reason, out)
	}
	waitNothing(t, h.work)
	return true
}

// mount makes a file system in the machine's work directory, or skips.
func (h *host) mount(at, fstype, options string) {
	h.t.Helper()
	dir := filepath.Join(h.work, at)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		h.t.Fatal(err)
	}
	if err := unix.Mount("none", dir, fstype, 0, options); err != nil {
		h.t.Skipf("mount %s: %v", fstype, err)
	}
	h.t.Cleanup(func() {
		killAll(h.t, h.work)
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	})
}

// TestFullDisk: wherever a start runs out of room, it leaves nothing, and the name can
// be used once there is room again.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	for _, dir := range []string{"run", "state"} {
		t.Run(dir, func(t *testing.T) {
			h := newHost(t)
			h.write("vm.toml", smallSpec)
			h.run("vmlatch", "plan", "vm.toml") // this caches what QEMU can do
			h.mount(dir, "tmpfs", "mode=700,size=1m")
			remount := func(options string) {
				t.Helper()
				if err := unix.Mount("none", filepath.Join(h.work, dir), "", unix.MS_REMOUNT, options); err != nil {
					t.Fatal(err)
				}
			}
			h.room = func() { remount("mode=700,size=1m,nr_inodes=10000") }
			failed := map[string]int{}
			for n := 1; n <= 16; n++ {
				for what, options := range map[string]string{
					"inodes": fmt.Sprintf("mode=700,size=1m,nr_inodes=%d", n),
					"pages":  fmt.Sprintf("mode=700,size=%d,nr_inodes=10000", n*os.Getpagesize()),
				} {
					// A file system cannot get smaller than what is in it.
					entries, err := os.ReadDir(filepath.Join(h.work, dir))
					for _, e := range entries {
						err = errors.Join(err, os.RemoveAll(filepath.Join(h.work, dir, e.Name())))
					}
					if err != nil {
						t.Fatal(err)
					}
					remount(options)
					if h.startOrNothing("no space left on device") {
						failed[what]++
					}
				}
			}
			if failed["inodes"] < 3 || failed["inodes"] == 16 {
				t.Errorf("%d of 16 starts with few inodes failed", failed["inodes"])
			}
			if dir == "run" && (failed["pages"] == 0 || failed["pages"] == 16) {
				t.Errorf("%d of 16 starts with few pages failed", failed["pages"])
			}
			h.room()
			if h.startOrNothing("") {
				t.Error("the name cannot be used again")
			}
		})
	}
}

// TestFullDiskHolds: a guest is not released if there is no room to record that. It can
// still be stopped, and released once there is room.
func TestFullDiskHolds(t *testing.T) {
	h := newHost(t)
	h.write("vm.toml", smallSpec)
	h.mount("run", "tmpfs", "mode=700,size=1m")
	h.run("vmlatch", "start", "vm.toml", "--hold")
	filler := filepath.Join(h.work, "run", "filler")
	if err := os.WriteFile(filler, make([]byte, 2<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	h.shows("release", h.fails("", "release", "vm"), "no space left", "hint: ")
	h.shows("ps", h.run("vmlatch", "ps"), "paused")
	h.shows("query-status", h.run("vmlatch", "qmp", "vm", "query-status"), `"running": false`)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	h.run("vmlatch", "release", "vm")
	if err := os.WriteFile(filler, make([]byte, 2<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	h.pulled("stop", "vm", "--timeout", "1s") // QEMU ends, although nothing can be recorded
	_ = os.Remove(filler)
	h.run("vmlatch", "ps")
	h.clearEnded()
	waitNothing(t, h.work)
}

// TestReadOnly: a directory that cannot be written to is named, and nothing is left
// in the other one.
func TestReadOnly(t *testing.T) {
	for _, dir := range []string{"run", "state"} {
		t.Run(dir, func(t *testing.T) {
			h := newHost(t)
			h.write("vm.toml", smallSpec)
			h.mount(dir, "tmpfs", "mode=700,size=1m")
			at := filepath.Join(h.work, dir)
			if err := unix.Mount("none", at, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
				t.Fatal(err)
			}
			h.shows("start", h.fails("", "start", "vm.toml", "--hold"), "read-only file system", "hint: ")
			if dir == "state" {
				waitNothing(t, h.work)
			}
		})
	}
}

// TestFewDescriptors: under any limit on open files a start succeeds, or leaves nothing
// and names the limit.
func TestFewDescriptors(t *testing.T) {
	needProgram(t, "prlimit")
	h := newHost(t)
	h.write("vm.toml", smallSpec)
	h.run("vmlatch", "plan", "vm.toml")
	failed := 0
	for n := 8; n <= 40; n++ {
		if h.startOrNothing("too many open files", "prlimit", fmt.Sprintf("--nofile=%d:%[1]d", n)) {
			failed++
		}
	}
	if failed < 5 || failed == 33 {
		t.Errorf("%d of 33 starts failed, want 5 to 32", failed)
	}
}

// TestNoMemory: when QEMU cannot get memory, the output says so and what helps.
func TestNoMemory(t *testing.T) {
	h := newHost(t)
	h.write("qemu", "#!/bin/sh\nulimit -v 2000000\nexec qemu-system-x86_64 \"$@\"\n")
	if err := os.Chmod(filepath.Join(h.work, "qemu"), 0o700); err != nil {
		t.Fatal(err)
	}
	h.write("vm.toml", "memory = \"8GiB\"\naccel = \"tcg\"\nqemu = \"./qemu\"\n")
	if !h.startOrNothing("cannot allocate memory") {
		t.Error("it starts")
	}
	h.write("vm.toml", "memory = \"32MiB\"\naccel = \"tcg\"\nqemu = \"./qemu\"\n")
	if h.startOrNothing("") {
		t.Error("less memory does not help")
	}
}

// TestFileSystems: run directories on file systems that the other tests do not use.
func TestFileSystems(t *testing.T) {
	for _, fs := range []string{"tmpfs", "ext4"} {
		t.Run(fs, func(t *testing.T) {
			h := newHost(t)
			h.write("vm.toml", smallSpec)
			if fs == "tmpfs" {
				h.mount("run", "tmpfs", "mode=700,size=1m")
			} else {
				needProgram(t, "mkfs.ext4", "mount")
				image, dir := filepath.Join(h.work, "ext4.img"), filepath.Join(h.work, "run")
				for _, args := range [][]string{
					{"truncate", "-s", "16M", image},
					{"mkfs.ext4", "-q", image},
					{"mkdir", dir},
					{"mount", "-o", "loop", image, dir},
				} {
					if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
						t.Skipf("%v: %v: %s", args, err, out)
					}
				}
				t.Cleanup(func() {
					killAll(t, h.work)
					_ = unix.Unmount(dir, unix.MNT_DETACH)
				})
				_ = os.Remove(filepath.Join(dir, "lost+found"))
			}
			h.run("vmlatch", "start", "vm.toml", "--hold")
			h.run("vmlatch", "release", "vm")
			h.shows("ps", h.run("vmlatch", "ps"), "running")
			killAll(t, h.work+"/state")
			for pid := range processes("guest=vm") {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
			within(t, "the dead VM is not cleared away", func() bool {
				return !strings.Contains(h.run("vmlatch", "ps"), "vm")
			})
			if h.startOrNothing("") {
				t.Error("its name cannot be used again")
			}
		})
	}
}

// TestClocks: no decision depends on a clock that can be set. Records and files dated
// in the past or the future work like any other, and commands can manage a VM whose
// monotonic clock is days away from theirs.
func TestClocks(t *testing.T) {
	h := newHost(t)
	h.write("vm.toml", smallSpec)
	h.run("vmlatch", "start", "vm.toml", "--hold")
	record := filepath.Join(h.work, "run/vm/record.json")
	for _, year := range []string{"1970", "2106", "9999"} {
		b, err := os.ReadFile(record)
		if err != nil {
			t.Fatal(err)
		}
		i := bytes.Index(b, []byte(`"started": "`)) + len(`"started": "`)
		copy(b[i:], year)
		if err := os.WriteFile(record, b, 0o600); err != nil {
			t.Fatal(err)
		}
		y, _ := strconv.Atoi(year)
		when := time.Date(min(y, 2200), 1, 1, 0, 0, 0, 0, time.UTC)
		_ = filepath.WalkDir(filepath.Join(h.work, "run"), func(p string, _ os.DirEntry, _ error) error {
			return os.Chtimes(p, when, when)
		})
		if out := h.run("vmlatch", "ps"); !strings.Contains(out, "paused") {
			t.Fatalf("in %s: %s", year, out)
		}
	}
	command := h.command("vmlatch", "release", "vm")
	shifted := wrapped(command, "unshare", "--time", "--monotonic", "1000000", "--boottime", "1000000", "--fork")
	if out, err := h.attempt(shifted); err != nil && strings.Contains(out, "unshare") {
		t.Logf("no time namespaces here: %s", out)
		h.run("vmlatch", "release", "vm")
	} else if err != nil {
		t.Errorf("a command days ahead: %s", out)
	}
	h.pulled("stop", "vm", "--timeout", "1s")
	h.clearEnded()
	waitNothing(t, h.work)
}
