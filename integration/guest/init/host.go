package main

import (
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// host makes the guest a host of its own: its root is the directory that the tag shares, which it
// only reads, with the kernel's file systems and room in /run. There it runs the program that
// vmlatch.run names.
func host(tag, program string) error {
	const root = "/host"
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	for _, m := range []struct {
		kind, from, dir string
		flags           uintptr
		data            string
	}{
		{"virtiofs", tag, "", unix.MS_RDONLY, ""},
		{"proc", "proc", "/proc", 0, ""},
		{"sysfs", "sysfs", "/sys", 0, ""},
		{"devtmpfs", "devtmpfs", "/dev", 0, ""},
		{"securityfs", "securityfs", "/sys/kernel/security", 0, ""},
		{"cgroup2", "cgroup2", "/sys/fs/cgroup", 0, ""},
		{"tmpfs", "tmpfs", "/run", 0, "mode=755"},
	} {
		if err := unix.Mount(m.from, root+m.dir, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", root+m.dir, err)
		}
	}
	// As switch_root(8) does, after which namespaces of users can be made.
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	cmd := exec.Command(program)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/run", "TMPDIR=/run"}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}
