//go:build !quick

package vectors

const withFiles = true
