package cli

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Output is a result that will be written.
type Output struct {
	to     io.Writer // written to directly: standard output, a pipe, the null device
	direct *os.File
	staged *staged
	mode   os.FileMode
}

// PrepareOutput gets ready to write a result to a file, or to standard output
// for "-". What would make that fail, such as a missing directory, fails here. A
// regular file appears whole, at Commit, or not at all.
func (s *IO) PrepareOutput(name string, mode os.FileMode) (*Output, error) {
	if name == "-" {
		return &Output{to: s.Out}, nil
	}
	info, err := os.Stat(name)
	switch {
	case err == nil && info.IsDir():
		return nil, &os.PathError{Op: "write", Path: name, Err: errors.New("is a directory")}
	case err == nil && !info.Mode().IsRegular():
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		return &Output{to: f, direct: f}, err
	}
	staged, err := stage(name, false)
	return &Output{staged: staged, mode: mode}, err
}

// PrepareSecret gets ready to write a regular file that only its owner can read, mode 0600,
// in a directory that no other user can write to.
func PrepareSecret(name string) (*Output, error) {
	staged, err := stage(name, true)
	return &Output{staged: staged, mode: 0o600}, err
}

// Commit writes the result, in place of a file that has its name.
func (o *Output) Commit(data []byte) error { return o.commit(data, (*staged).replace) }

// CommitNew writes the result to a regular file; if one has its name already, it stays as
// it is, and the error wraps fs.ErrExist.
func (o *Output) CommitNew(data []byte) error { return o.commit(data, (*staged).create) }

func (o *Output) commit(data []byte, publish func(*staged) error) error {
	if o.to != nil {
		_, err := o.to.Write(data)
		return err
	}
	f := o.staged.file
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Chmod(o.mode); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := publish(o.staged); err != nil {
		return err
	}
	return o.staged.syncDir() // the new name must also survive a power failure
}

// Discard abandons what was not committed; after Commit it only cleans up.
func (o *Output) Discard() {
	switch {
	case o == nil:
	case o.direct != nil:
		_ = o.direct.Close()
	case o.staged != nil:
		o.staged.discard()
	}
}

// WriteFile replaces a file atomically.
func WriteFile(name string, data []byte, mode os.FileMode) error {
	staged, err := stage(name, false)
	if err != nil {
		return err
	}
	o := &Output{staged: staged, mode: mode}
	defer o.Discard()
	return o.Commit(data)
}

// staged is a file on its way: it has no name, where the system can do that, or a random
// one.
type staged struct {
	file *os.File
	dir  *os.Root // all names are looked up in it, whatever its path leads to meanwhile
	base string   // the name that it will have
	temp string   // and the one that it has, or ""
}

// stage creates the file, with mode 0600. A secret is refused a directory that others can
// write to.
func stage(name string, secret bool) (_ *staged, err error) {
	dir, err := os.OpenRoot(filepath.Dir(name))
	if err != nil {
		return nil, err
	}
	s := &staged{dir: dir, base: filepath.Base(name)}
	defer func() {
		if err != nil {
			_ = dir.Close()
		}
	}()
	if secret {
		if err := s.checkPrivate(filepath.Dir(name)); err != nil {
			return nil, err
		}
	}
	s.sweep()
	if s.file, err = unnamed(dir); err == nil {
		return s, nil
	}
	s.temp = s.random()
	s.file, err = dir.OpenFile(s.temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	return s, err
}

func (s *staged) prefix() string { return "." + s.base + ".new-" }

func (s *staged) random() string { return s.prefix() + rand.Text() }

// leftover is the age at which a staged file is taken for one that a killed program left.
const leftover = time.Hour

// sweep removes what killed programs left under names like this file's.
func (s *staged) sweep() {
	d, err := s.dir.Open(".")
	if err != nil {
		return
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	for _, name := range names {
		if !strings.HasPrefix(name, s.prefix()) {
			continue
		}
		if info, err := s.dir.Lstat(name); err == nil && info.Mode().IsRegular() && isOurs(info) &&
			time.Since(info.ModTime()) > leftover {
			_ = s.dir.Remove(name)
		}
	}
}

// replace gives the file its name, and takes it from another file.
func (s *staged) replace() error {
	if s.temp == "" {
		temp := s.random()
		if err := linkUnnamed(s.file, s.dir, temp); err != nil {
			return err
		}
		s.temp = temp
	}
	if err := s.dir.Rename(s.temp, s.base); err != nil {
		return err
	}
	s.temp = ""
	return nil
}

// create gives the file its name if that is free.
func (s *staged) create() error {
	if s.temp == "" {
		return linkUnnamed(s.file, s.dir, s.base)
	}
	return s.dir.Link(s.temp, s.base) // discard removes the other name
}

func (s *staged) discard() {
	_ = s.file.Close()
	if s.temp != "" {
		_ = s.dir.Remove(s.temp)
	}
	_ = s.dir.Close()
}

func notPrivate(dir, why string) error {
	return Fail(ExitUsage, fmt.Errorf("%s: %s: keys are not written there", dir, why),
		"make a directory of your own for them: mkdir -m 700 keys")
}
