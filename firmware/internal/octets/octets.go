// Package octets reads what AMD's structures have in common: numbers in little-endian order, and
// bytes that must be zero.
package octets

import (
	"math/big"
	"slices"
)

// Number reads a number, the least significant byte first.
func Number(b []byte) *big.Int {
	be := slices.Clone(b)
	slices.Reverse(be)
	return new(big.Int).SetBytes(be)
}

// AllZero reports whether all bytes are zero.
func AllZero(b []byte) bool { return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) }
