// Package mapfile lets large files be hashed where the kernel keeps them, without
// a copy. Where files cannot be mapped they are read.
package mapfile

import (
	"errors"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/vmlatch/vmlatch/firmware/regular"
)

// ErrChanged means that a file became shorter while it was used.
var ErrChanged = errors.New("the file changed while it was read")

// Limits, in bytes. QEMU counts a kernel and an initrd in 32 bits; what has no length
// beforehand, such as a pipe, is read into memory.
const (
	limitMapped = 1<<32 - 1
	limitRead   = 1 << 30
)

// IsChange reports whether a panic comes from a mapped file that became shorter.
func IsChange(panicked any) bool {
	_, fault := panicked.(interface{ Addr() uintptr })
	return fault
}

// With calls a function with a file's content, which it must neither change nor
// keep. What cannot be mapped, such as a pipe, is read.
func With(name string, use func([]byte) error) (err error) {
	b, done, err := open(name)
	if err != nil {
		return err
	}
	defer done()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			if !IsChange(r) {
				panic(r)
			}
			err = fmt.Errorf("%s: %w", name, ErrChanged)
		}
	}()
	return use(b)
}

// Read maps a file for as long as the process lives; it must not be written to. If
// the file becomes shorter meanwhile, its use faults: who reads files of others
// asks for a panic then (debug.SetPanicOnFault) and looks with IsChange. What
// cannot be mapped, such as a pipe, is read.
func Read(name string) ([]byte, error) {
	b, _, err := open(name)
	return b, err
}

// open maps or reads a file; done unmaps it.
func open(name string) (b []byte, done func(), err error) {
	in, err := regular.OpenInput(name, limitMapped)
	if err != nil {
		return nil, nil, err
	}
	defer in.Close()
	size, ok := in.Size()
	if ok && size > 0 {
		if b, done, err = mapped(in.File(), int(size)); err != errors.ErrUnsupported {
			return b, done, err
		}
	}
	b, err = io.ReadAll(io.LimitReader(in, limitRead+1))
	if err == nil && len(b) > limitRead {
		err = fmt.Errorf("%s: %w: more than %d bytes", name, regular.ErrTooLarge, limitRead)
	}
	return b, func() {}, err
}
