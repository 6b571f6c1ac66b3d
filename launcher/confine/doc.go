// Package confine keeps a QEMU that a guest has taken over from everything but its own VM.
//
// A [Box] says how one process is confined: which files it may reach and how, its user, its
// namespaces, its limits. It is a plain value, part of a plan, so that a person can read it before
// anything runs. [Run] is the stage that carries it out: the launcher forks itself, the stage puts
// its own process into the box step by step, tries what the box forbids, reports what it found,
// and becomes the program. Nothing of it happens in the launcher's own process, whose threads keep
// their rights.
//
// box.go has the description, host.go and users.go what this host has for it, program.go and elf.go
// what a program needs of the file system; stage.go the stage, with tree.go for its file system,
// label.go for AppArmor and landlock.go for the kernel's rules; live.go reads back what can be read
// of a running process, and start.go is the launcher's side.
//
// Sources: landlock(7), user_namespaces(7), mount_namespaces(7), capabilities(7), prctl(2); QEMU,
// docs/system/security.rst.
package confine
