//go:build !linux

package cli

import (
	"errors"
	"os"
)

func unnamed(*os.Root) (*os.File, error) { return nil, errors.ErrUnsupported }

func linkUnnamed(*os.File, *os.Root, string) error { return errors.ErrUnsupported }
