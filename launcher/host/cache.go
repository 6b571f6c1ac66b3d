package host

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/launcher/internal/flock"
)

// Cache keeps what QEMUs answered, a file for each path. An answer holds for one
// content of the program, one boot and one set of KVM's parameters. An empty Dir
// keeps nothing.
type Cache struct {
	Dir  string
	Root Root // whose boot id and parameters count; "" is "/"
}

// cacheSchema changes with the meaning of an entry: others are asked for again.
const cacheSchema = "vmlatch.qemu/5"

type cacheEntry struct {
	Schema string   `json:"schema"`
	File   fileID   `json:"file"`
	SHA256 string   `json:"sha256"`
	Boot   string   `json:"boot"`
	KVM    []string `json:"kvm"`
	QEMU   *QEMU    `json:"qemu"`
}

// fileID shows if a file may have changed since it was hashed.
type fileID struct {
	Dev, Ino     uint64
	Size         int64
	MTime, CTime int64 // ns
}

// Probe returns what a QEMU can do, from the cache if that still holds. Of
// several processes that need an answer at once one asks, and the others wait.
func (c Cache) Probe(ctx context.Context, path string, more ...string) (*QEMU, error) {
	id, err := identify(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrQEMU, err)
	}
	want := cacheEntry{Schema: cacheSchema, File: id}
	want.Boot, want.KVM = c.circumstances()
	file := c.file(path)
	if q := c.load(file, path, &want); q.knows(more) {
		return q, nil
	}
	unlock, err := c.lock(ctx, file)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrQEMU, err)
	}
	if unlock != nil {
		defer unlock()
		if q := c.load(file, path, &want); q.knows(more) {
			return q, nil
		}
	}
	q, err := Probe(ctx, path, more...)
	if err != nil {
		return nil, err
	}
	sum, hashErr := sev.HashFile(path)
	// If it was replaced meanwhile, the answer may be the other file's.
	if now, err := identify(path); err == nil && hashErr == nil && now == id {
		want.QEMU, want.SHA256 = q, hex.EncodeToString(sum[:])
		c.store(file, &want)
	}
	return q, nil
}

// knows reports whether an answer is there and is about all of the types.
func (q *QEMU) knows(types []string) bool {
	return q != nil && !slices.ContainsFunc(types, func(t string) bool { return !slices.Contains(q.Asked, t) })
}

func (c Cache) file(path string) string {
	if c.Dir == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(path))
	return filepath.Join(c.Dir, "qemu-"+hex.EncodeToString(sum[:8])+".json")
}

// kvmParameters are those that decide what guests can be made; the others tune how
// they run.
var kvmParameters = []string{
	"kvm_amd/parameters/sev",
	"kvm_amd/parameters/sev_es",
	"kvm_amd/parameters/sev_snp",
	"kvm_amd/parameters/ciphertext_hiding_asids",
	"kvm_amd/parameters/npt",
	"kvm_intel/parameters/tdx",
	"kvm_intel/parameters/ept",
}

// circumstances are what an answer depends on besides the program.
func (c Cache) circumstances() (boot string, kvm []string) {
	root := c.Root
	if root == "" {
		root = "/"
	}
	for _, p := range kvmParameters {
		if v := root.word("sys/module/" + p); v != "" {
			kvm = append(kvm, p+"="+v)
		}
	}
	return root.word("proc/sys/kernel/random/boot_id"), kvm
}

// load returns an entry's answer if it holds. A file that was only touched, or
// copied anew with the same content, is recognised by its hash.
func (c Cache) load(file, path string, want *cacheEntry) *QEMU {
	if file == "" {
		return nil
	}
	b, err := regular.ReadNoFollow(file, maxRead)
	if err != nil {
		return nil
	}
	var have cacheEntry
	if json.Unmarshal(b, &have) != nil || have.QEMU == nil || have.QEMU.Path != path ||
		have.Schema != want.Schema || have.Boot != want.Boot || !slices.Equal(have.KVM, want.KVM) {
		return nil
	}
	if have.File != want.File {
		if sum, err := sev.HashFile(path); err != nil || hex.EncodeToString(sum[:]) != have.SHA256 {
			return nil
		}
		have.File = want.File
		c.store(file, &have)
	}
	return have.QEMU
}

// store replaces an entry. Where a cache cannot be written to, nothing is kept.
func (c Cache) store(file string, e any) {
	if file == "" {
		return
	}
	b, err := json.Marshal(e)
	if err != nil {
		return
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return
	}
	tmp, err := os.CreateTemp(c.Dir, ".new-*")
	if err != nil {
		return
	}
	_, err = tmp.Write(b)
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
	}
}

// lock makes the directory and takes an entry's lock; nil if that is not possible,
// which only costs time, and an error if ctx ends first.
func (c Cache) lock(ctx context.Context, file string) (unlock func(), err error) {
	if file == "" || os.MkdirAll(c.Dir, 0o700) != nil {
		return nil, nil
	}
	// A home on NFS gives an exclusive lock only for writing (flock(2)).
	f, err := flock.Open(ctx, strings.TrimSuffix(file, ".json")+".lock", unix.O_CREAT|unix.O_RDWR, unix.LOCK_EX)
	if err != nil {
		return nil, ctx.Err()
	}
	return func() { _ = f.Close() }, nil
}

func identify(path string) (id fileID, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return id, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return fileID{uint64(st.Dev), st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()}, nil
}
