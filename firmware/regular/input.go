package regular

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// ErrSilent is wrapped by errors about a pipe that gives nothing.
var ErrSilent = errors.New("nothing came")

// How long an input may be silent, and how often it is looked at where the system does
// not tell.
const (
	Patience = 10 * time.Second
	glance   = 10 * time.Millisecond
)

// Input is a file or a pipe that is open for reading.
type Input struct {
	f        *os.File
	size     int64 // of a regular file, else -1
	limit    int64
	patience time.Duration
	read     int64
}

// OpenInput opens a regular file, a pipe, such as a shell's <(command), or the null device,
// to read at most limit bytes of it. Other devices and sockets are errors that wrap
// ErrNotRegular. It does not wait for a pipe's writer.
func OpenInput(name string, limit int64) (*Input, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|nonBlock, 0)
	if isSocket(err) {
		err = &fs.PathError{Op: "open", Path: name, Err: ErrNotRegular}
	}
	if err != nil {
		return nil, err
	}
	in := &Input{f: f, size: -1, limit: limit, patience: Patience}
	info, err := f.Stat()
	switch {
	case err != nil:
	case info.Mode().IsRegular() && info.Size() > limit:
		err = tooLarge(name, limit)
	case info.Mode().IsRegular():
		in.size = info.Size()
	case info.IsDir():
		err = &fs.PathError{Op: "read", Path: name, Err: syscall.EISDIR}
	case info.Mode()&fs.ModeNamedPipe == 0 && !isNull(info):
		err = &fs.PathError{Op: "open", Path: name, Err: ErrNotRegular}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return in, nil
}

func isNull(info fs.FileInfo) bool {
	null, err := os.Stat(os.DevNull)
	return err == nil && os.SameFile(info, null)
}

// File is the open file, for mapping it into memory.
func (in *Input) File() *os.File { return in.f }

// Size is a regular file's length in bytes; ok is false for a pipe.
func (in *Input) Size() (n int64, ok bool) { return in.size, in.size >= 0 }

// Close closes the file.
func (in *Input) Close() error { return in.f.Close() }

// Read reads like an [io.Reader]. It fails with an error that wraps ErrTooLarge at the
// limit, and with one that wraps ErrSilent if nothing comes for ten seconds.
func (in *Input) Read(b []byte) (int, error) {
	for end := time.Now().Add(in.patience); ; time.Sleep(glance) {
		_ = in.f.SetReadDeadline(end) // where the system knows deadlines
		n, err := in.f.Read(b)
		in.read += int64(n)
		pipe := in.size < 0 && !errors.Is(err, fs.ErrClosed)
		switch {
		case in.read > in.limit:
			return 0, tooLarge(in.f.Name(), in.limit)
		case n > 0 || err == nil:
			return n, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
		case pipe && isAgain(err):
		case pipe && errors.Is(err, io.EOF) && in.read == 0 && !in.null(): // its writer may still come
		default:
			return n, err
		}
		if !time.Now().Before(end) {
			return 0, &fs.PathError{Op: "read", Path: in.f.Name(), Err: ErrSilent}
		}
	}
}

func (in *Input) null() bool {
	info, err := in.f.Stat()
	return err == nil && isNull(info)
}

// ReadInput reads what OpenInput opens to its end, at most limit bytes.
func ReadInput(name string, limit int64) ([]byte, error) {
	in, err := OpenInput(name, limit)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	return io.ReadAll(in)
}
