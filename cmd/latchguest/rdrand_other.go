//go:build !amd64

package main

// rdrand is an instruction of x86.
func rdrand() (uint64, bool) { return 0, false }

func hasRDRAND() bool { return false }
