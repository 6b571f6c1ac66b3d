package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/launcher/fault"
)

// File is a spec's file: where it is, and which keys it has.
type File struct {
	Path string // as the user named it, for messages
	Dir  string // what relative paths start from

	text []byte
	keys map[string]int // where they are written, as an offset
}

// maxFile bounds a file of settings, in bytes.
const maxFile = 1 << 20

// Load reads a spec's file into its tables; see [Parse]. It does not wait for the
// writer of a pipe: a VM can be started again from its file.
func Load(path string, tables Tables) (*File, error) {
	b, err := regular.Read(path, maxFile)
	if err != nil {
		e := &fault.Error{Kind: fault.Spec, File: path, Err: withoutPath(err)}
		if info, statErr := os.Stat(path); statErr == nil && info.IsDir() {
			e.Err, e.Fix = syscall.EISDIR, `"vmlatch start --all DIR" starts every spec of a directory`
		}
		return nil, e
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	return Parse(b, path, filepath.Dir(abs), tables)
}

// Parse reads a spec into its tables. path names it in errors, relative paths in it
// start from dir. Unknown keys are errors that name a near one.
func Parse(b []byte, path, dir string, tables Tables) (*File, error) {
	b, _, _ = plainText(b)
	f := &File{Path: path, Dir: dir, text: b}
	var err error
	f.keys, err = tables.decode(b, path)
	return f, err
}

// Has reports whether the file has a key, such as "confidential.policy".
func (f *File) Has(key string) bool {
	_, ok := f.keys[key]
	return ok
}

// From tells where a key's value came from: the spec or a default.
func (f *File) From(key string) string {
	if f.Has(key) {
		return "spec"
	}
	return "default"
}

// Abs makes a path of the spec absolute.
func (f *File) Abs(path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(f.Dir, path)
}

// Where is the file's own absolute path; "" if the spec was not read from a file.
func (f *File) Where() string {
	if f.Path == "" {
		return ""
	}
	return filepath.Join(f.Dir, filepath.Base(f.Path))
}

// Errorf is an error about a key's value. Tables of an array are "disk 1", "disk 2", …,
// and their keys have the tables' place.
func (f *File) Errorf(key, format string, args ...any) *fault.Error {
	e := &fault.Error{Kind: fault.Spec, File: f.Path, Key: key, Err: fmt.Errorf(format, args...)}
	at, ok := f.keys[key]
	if table, _, dotted := strings.Cut(key, "."); !ok && dotted {
		at, ok = f.keys[table]
	}
	if ok {
		e.Line, e.Column = position(f.text, at)
	}
	return e
}

// NoNUL refuses NUL characters, at which programs written in C cut a text.
func (f *File) NoNUL(texts ...string) error {
	for _, text := range texts {
		if strings.ContainsRune(text, 0) {
			return f.Errorf("", "a NUL character in %q", text)
		}
	}
	return nil
}

// Unusable is an error about a file that the spec names.
func (f *File) Unusable(use string, err error) error {
	fix := fault.FixPaths
	if errors.Is(err, fs.ErrPermission) {
		fix = fault.FixRead
	}
	return &fault.Error{
		Kind: fault.Spec, File: f.Path, Key: use, Err: err, Check: fault.FilesReadable, Fix: fix,
	}
}

// withoutPath leaves a file's name out of an error that names it once more.
func withoutPath(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
