package twin

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxFile is the longest file that is taken, in bytes: QEMU counts in 32 bits.
const maxFile = 1<<32 - 1

// files are copies of what a launch measures, in memory and sealed: both QEMUs read the same bytes,
// whatever happens to the files meanwhile.
type files struct{ copies map[string]*file }

// file is one copy.
type file struct {
	path  string
	fd    int
	bytes []byte // mapped
}

// open copies a file, once.
func (fs *files) open(path string) (*file, error) {
	if f := fs.copies[path]; f != nil {
		return f, nil
	}
	in, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe must not block
	if err != nil {
		return nil, err
	}
	defer in.Close()
	info, err := in.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s: not a regular file", path)
	case info.Size() == 0:
		return nil, fmt.Errorf("%s: it is empty", path)
	}
	f, err := copyOf(in, path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if fs.copies == nil {
		fs.copies = map[string]*file{}
	}
	fs.copies[path] = f
	return f, nil
}

func copyOf(in *os.File, path string) (*file, error) {
	// It is inherited by both QEMUs under its number.
	fd, err := unix.MemfdCreate("swtee:"+filepath.Base(path), unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	f := &file{path: path, fd: fd}
	out := os.NewFile(uintptr(fd), path)
	n, err := io.Copy(out, io.LimitReader(in, maxFile+1))
	if err == nil && n > maxFile {
		err = errors.New("longer than 4 GiB")
	}
	if err == nil {
		const seals = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
	}
	if err == nil {
		f.bytes, err = unix.Mmap(fd, 0, int(n), unix.PROT_READ, unix.MAP_SHARED)
	}
	if err != nil {
		_ = out.Close()
		return nil, err
	}
	// The descriptor stays open under its number, without os.File, which would close it.
	if f.fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD, 3); err != nil {
		_ = unix.Munmap(f.bytes)
	}
	return f, errors.Join(err, out.Close())
}

// name is the copy's name for a process that inherits it.
func (f *file) name() string { return fmt.Sprintf("/proc/self/fd/%d", f.fd) }

func (fs *files) close() {
	for _, f := range fs.copies {
		_ = unix.Munmap(f.bytes)
		_ = unix.Close(f.fd)
	}
	fs.copies = nil
}
