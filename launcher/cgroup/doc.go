// Package cgroup bounds what a VM takes of its host, by a control group of version 2 that is QEMU's
// own: below this process's where that was delegated, or as a transient scope that systemd makes.
//
// Sources: Linux, Documentation/admin-guide/cgroup-v2.rst; systemd, docs/CGROUP_DELEGATION.md;
// org.freedesktop.systemd1(5), StartTransientUnit.
package cgroup
