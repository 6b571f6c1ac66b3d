// Package mapfile lets large files be hashed where the kernel keeps them, without
// a copy.
package mapfile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// ErrChanged means that a file became shorter while it was used.
var ErrChanged = errors.New("the file changed while it was read")

// IsChange reports whether a panic comes from a mapped file that became shorter.
func IsChange(panicked any) bool {
	_, fault := panicked.(interface{ Addr() uintptr })
	return fault
}

// With calls a function with a file's content, which it must neither change nor
// keep. What cannot be mapped, such as a pipe, is read.
func With(name string, use func([]byte) error) (err error) {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() == 0 {
		b, err := readAll(f)
		if err != nil {
			return err
		}
		return use(b)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("%s: map: %w", name, err)
	}
	defer unix.Munmap(b)
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
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() == 0 || info.Size() > limit {
		return readAll(f)
	}
	return unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
}

// limit bounds what is read into memory: no firmware, kernel or initrd is larger.
const limit = 1 << 30

func readAll(f *os.File) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && len(b) > limit {
		return nil, fmt.Errorf("%s: more than %d bytes", f.Name(), limit)
	}
	return b, err
}
