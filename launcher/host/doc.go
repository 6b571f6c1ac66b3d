// Package host finds out what this host can do for a VM: its processor, KVM, the
// kernel's settings, the encryption slots, and what a QEMU was built with.
//
// [Detect] reads below a [Root], "/" for this host. What does not come from a file, such
// as CPUID and MSRs, a recorded root has in its directory "recorded"
// ([Root.Record] makes one), so that a report about one host can be made on
// another. What cannot be read is reported as [Unknown], never guessed.
//
// [Probe] asks a QEMU what it knows; [Cache] keeps the answers.
package host
