// Package keyfile keeps keys that are made once, in a file that only its user reads.
package keyfile

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Open reads a file of a directory into a value, making both first if there is no file. Several
// processes that do so at once get the same value: it is written under a temporary name, and the
// first to link it into its place wins.
func Open[T any](dir, name string, create func() (*T, error)) (*T, error) {
	file := filepath.Join(dir, name)
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		b, err = write(dir, file, create)
	}
	if err != nil {
		return nil, err
	}
	v := new(T)
	if err := json.Unmarshal(b, v); err != nil {
		return nil, &Damaged{File: file, Err: err}
	}
	return v, nil
}

// Damaged says that a file does not hold what it should.
type Damaged struct {
	File string
	Err  error
}

func (d *Damaged) Error() string { return d.File + ": " + d.Err.Error() }
func (d *Damaged) Unwrap() error { return d.Err }

func write[T any](dir, file string, create func() (*T, error)) ([]byte, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	v, err := create()
	if err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return nil, err
	}
	tmp, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if err != nil {
		return nil, err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(b)
	if err = errors.Join(err, tmp.Close()); err != nil {
		return nil, err
	}
	if err := os.Link(tmp.Name(), file); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return os.ReadFile(file)
}
