package rundir

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/regular"
)

// ownDir refuses what is not a directory of this user's, or one that others can
// write to: they could put their files and links in it.
func ownDir(dir string) error {
	return dirOf(dir, func(uid int) bool { return uid == os.Geteuid() })
}

func dirOf(dir string, owner func(uid int) bool) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || !owner(int(st.Uid)) || st.Mode&0o022 != 0 {
		return fmt.Errorf("%s: %w", dir, ErrUnsafe)
	}
	return nil
}

// makeOwnDir makes a directory unless there is one of this user's.
func makeOwnDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return ownDir(dir)
}

// stage writes what will replace a file. Whatever lies in the way is removed, and
// no link followed.
func stage(tmp string, b []byte) error {
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(tmp)
	}
	return err
}

func replaceFile(tmp, name string, b []byte) error {
	if err := stage(tmp, b); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}

// StageRecord writes a new launch record without putting it in place: what could
// fail then, such as a full disk, fails before anything is done that it tells of.
func (d *Dir) StageRecord(rec *Record) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	if err := e.Encode(rec); err != nil {
		return err
	}
	if b.Len() > maxRecord { // it could not be read
		return fmt.Errorf("record of %s: has %d bytes, at most %d are possible", d.Name, b.Len(), maxRecord)
	}
	d.setRecorded(rec)
	return stage(d.Path(recordTemporary), b.Bytes()) // one writer: the holder of launch.lock
}

// RecordPath is where the VM's record is.
func (d *Dir) RecordPath() string { return d.Path(recordFile) }

// CommitRecord puts the staged record in place.
func (d *Dir) CommitRecord() error { return os.Rename(d.Path(recordTemporary), d.Path(recordFile)) }

// StagedRecord is a record that was staged by a command which died before it put
// it in place; nil if there is no such record.
func (d *Dir) StagedRecord() (*Record, error) { return readRecord(d.Path(recordTemporary)) }

// UnstageRecord forgets the staged record.
func (d *Dir) UnstageRecord() { _ = os.Remove(d.Path(recordTemporary)) }

// WriteRecord replaces the launch record.
func (d *Dir) WriteRecord(rec *Record) error {
	if err := d.StageRecord(rec); err != nil {
		return err
	}
	return d.CommitRecord()
}

// readRecord returns nil without an error when there is no record, or one that vmlatch
// did not write whole: then the launch never finished.
func readRecord(file string) (*Record, error) {
	b, err := regular.ReadNoFollow(file, maxRecord)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, regular.ErrNotRegular) || errors.Is(err, regular.ErrTooLarge) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var rec Record
	if json.Unmarshal(b, &rec) != nil {
		return nil, nil
	}
	return &rec, nil
}
