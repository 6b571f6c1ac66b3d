// Package tee knows the technologies that protect a guest's memory: one file each,
// with its keys of the spec's table [confidential], its policy, what it needs, its
// QEMU object, how QEMU is asked about it, and its checks.
//
// A new technology is one such file, and its entry in the list of tee.go.
//
// Start with [Parse] and [Spec.For].
package tee
