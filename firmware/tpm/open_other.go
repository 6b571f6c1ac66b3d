//go:build !unix

package tpm

import "os"

func openDevice(name string) (*os.File, error) { return os.OpenFile(name, os.O_RDWR, 0) }

func isBusy(error) bool { return false }
