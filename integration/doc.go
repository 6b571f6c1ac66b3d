// Package integration tests the programs as users run them: real QEMU, real
// OVMF, a real Linux guest, and the three programs built with the race
// detector. Its scripts (testdata/*.txtar) read as stories.
//
// Below it are guest (the test guest and its initrd) and bench (times and sizes against
// floors measured in the same run).
package integration
