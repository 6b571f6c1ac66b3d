// Package check makes the sanity checks of a launch: of the spec, of the host, and of
// the plan with its firmware. Each has an id, a cause, a fix and a source; what
// refuses a launch is never skipped silently.
//
// The checks of technologies stand in package tee, all others here: specChecks need
// the spec alone, hostChecks the host and its QEMU too, planChecks the plan.
//
// Start with [Spec], [Host] and [Plan].
package check
