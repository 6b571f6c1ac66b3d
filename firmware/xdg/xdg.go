// Package xdg finds a user's directories that package os does not know.
package xdg

import (
	"os"
	"path/filepath"
)

// StateDir is where a user's programs keep what outlives them, such as logs: by the XDG
// Base Directory Specification $XDG_STATE_HOME, if it is absolute, or ~/.local/state.
func StateDir() (string, error) {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return dir, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(home, ".local/state"), nil
}
