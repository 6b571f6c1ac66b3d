package check

// Order is the order of the table.
func Order() []string { return order[:] }
