// Package advice tells what an error means and what to do about it: what QEMU, the
// kernel and the platform's firmware say, and what a host can run out of. Hints stand
// in its tables, in the checks, or next to the error that they belong to; none stands
// in two places.
//
// Start with [For].
package advice
