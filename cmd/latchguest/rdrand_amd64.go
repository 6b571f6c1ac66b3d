package main

// rdrand is 64 bits of the processor's randomness; ok is false if it has none at the moment.
func rdrand() (v uint64, ok bool)

// features are those of CPUID leaf 1, register ECX.
func features() uint32

// hasRDRAND reports whether the processor has the instruction (Intel SDM, CPUID leaf 1, ECX bit
// 30).
func hasRDRAND() bool { return features()&(1<<30) != 0 }
