// Package plan works out what a start executes, as a value: equal guests and equal
// facts give an equal [Plan]. [Build] reads no file and asks no program.
//
// Each kind of device has a file of its own, with its table of the spec, what makes
// it valid, its QEMU options, and what has to be opened for it. A technology adds its
// part through a [Builder].
//
// Start with [Build]; a [Guest] comes from package tee.
package plan
