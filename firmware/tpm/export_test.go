package tpm

import "time"

// NoSleep keeps a test from waiting.
func (c *Conn) NoSleep() { c.sleep = func(time.Duration) {} }
