// Package integration tests the programs as users run them: real QEMU, real
// OVMF, and a real Linux guest. Its scripts (testdata/*.txtar) read as stories. They,
// and tests in which several things happen at once, run programs that were built with the
// race detector; those that start many programs one by one do not, as these take several
// times as long to start.
//
// Below it are guest (the test guest and its initrd) and bench (times and sizes against
// floors measured in the same run).
package integration
