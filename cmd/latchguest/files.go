package main

import (
	"errors"
	"io"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/smallfmt"
)

// Files are read and written by the kernel's calls: those of package os know dates and time zones,
// which would be a tenth of this program.

// file is an open file.
type file int

func open(name string, flags int, mode uint32) (file, error) {
	for {
		fd, err := unix.Open(name, flags|unix.O_CLOEXEC, mode)
		if !errors.Is(err, unix.EINTR) {
			return file(fd), named(name, err)
		}
	}
}

// named says which file an error is about.
func named(name string, err error) error {
	if err == nil {
		return nil
	}
	return smallfmt.Errorf("%s: %w", name, err)
}

// Read and Write are those of io.
func (f file) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(int(f), b)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, err
		case n == 0 && len(b) > 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func (f file) Write(b []byte) (done int, err error) {
	for done < len(b) {
		n, err := unix.Write(int(f), b[done:])
		if err != nil && !errors.Is(err, unix.EINTR) {
			return done, err
		}
		done += max(n, 0)
	}
	return done, nil
}

// Close is io's.
func (f file) Close() error { return unix.Close(int(f)) }

// maxFile bounds what is read from a file of the kernel's, in bytes.
const maxFile = 1 << 20

func readFile(name string) ([]byte, error) {
	f, err := open(name, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	return b, named(name, err)
}

// writeFile writes with one call, as attributes of the kernel want.
func writeFile(name string, b []byte) error {
	f, err := open(name, unix.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return named(name, errors.Join(err, f.Close()))
}

func exists(name string) bool { return unix.Access(name, unix.F_OK) == nil }

// list are the names in a directory; nil for one that cannot be read.
func list(dir string) (names []string) {
	f, err := open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	buf := make([]byte, 8<<10)
	for {
		n, err := unix.ReadDirent(int(f), buf)
		if err != nil || n <= 0 {
			return names
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

// makeDir makes a directory and those above it.
func makeDir(dir string) error {
	if exists(dir) {
		return nil
	}
	if up := parent(dir); up != dir {
		if err := makeDir(up); err != nil {
			return err
		}
	}
	if err := unix.Mkdir(dir, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return named(dir, err)
	}
	return nil
}

// parent is the directory of an absolute path.
func parent(name string) string {
	name = name[:max(strings.LastIndexByte(name, '/'), 0)]
	if name == "" {
		return "/"
	}
	return name
}
