//go:build !amd64

package cpuid

// Ask returns zeros: there is no such instruction.
func Ask(_, _ uint32) (a, b, c, d uint32) { return 0, 0, 0, 0 }
