// Package regular opens and reads the files that a command names. Nothing here waits for
// ever, and nothing is read without a limit: a name may lead to a pipe without a writer,
// or to /dev/zero.
package regular

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

var (
	// ErrNotRegular is wrapped by errors about what is not a regular file.
	ErrNotRegular = errors.New("not a regular file")
	// ErrTooLarge is wrapped by errors about a file that exceeds its limit.
	ErrTooLarge = errors.New("too large")
)

// Open opens a file for reading. Symbolic links are followed.
func Open(name string) (*os.File, error) { return open(name, 0) }

// OpenNoFollow is Open, but a symbolic link is an error that wraps ErrNotRegular.
func OpenNoFollow(name string) (*os.File, error) { return open(name, noFollow) }

func open(name string, flags int) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|nonBlock|flags, 0)
	if isSocket(err) || flags&noFollow != 0 && isLink(err) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: ErrNotRegular}
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: name, Err: ErrNotRegular}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// Read reads a file of at most limit bytes. Symbolic links are followed.
func Read(name string, limit int64) ([]byte, error) { return read(name, limit, Open) }

// ReadNoFollow is Read, but a symbolic link is an error that wraps ErrNotRegular.
func ReadNoFollow(name string, limit int64) ([]byte, error) { return read(name, limit, OpenNoFollow) }

func read(name string, limit int64, open func(string) (*os.File, error)) ([]byte, error) {
	f, err := open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = tooLarge(name, limit)
	}
	return b, err
}

func tooLarge(name string, limit int64) error {
	return &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("%w: more than %d bytes", ErrTooLarge, limit)}
}
