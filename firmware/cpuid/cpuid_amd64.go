package cpuid

// Ask returns the registers EAX to EDX of a leaf and a subleaf.
func Ask(leaf, sub uint32) (a, b, c, d uint32)
