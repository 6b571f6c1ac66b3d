package confine

import (
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// Access is what a process may do with a file, or with all that is below a directory.
type Access string

// Kinds of access.
const (
	Read    Access = "read"    // and look into directories
	Execute Access = "execute" // and read
	Write   Access = "write"   // read, write, make and remove
	Device  Access = "device"  // read, write and control
)

// File is a file, or a directory with all that is below it, that a process may reach.
type File struct {
	Path   string `json:"path"`
	Access Access `json:"access"`
}

// Namespaces that a box can have of its own.
const (
	User    = "user"
	Mount   = "mount"
	Network = "network"
	IPC     = "ipc"
	PID     = "pid"
)

// kinds say how each namespace is made, and what it is called in /proc/PID/ns (namespaces(7)).
var kinds = map[string]struct {
	flag   uintptr
	file   string
	byFork bool // else a process with threads can make it for one of them, too (unshare(2))
}{
	User:    {unix.CLONE_NEWUSER, "user", true},
	PID:     {unix.CLONE_NEWPID, "pid", true},
	Mount:   {unix.CLONE_NEWNS, "mnt", false},
	Network: {unix.CLONE_NEWNET, "net", false},
	IPC:     {unix.CLONE_NEWIPC, "ipc", false},
}

// flags are those of namespaces that a fork makes, or of the others.
func flags(namespaces []string, byFork bool) (all uintptr) {
	for _, name := range namespaces {
		if k := kinds[name]; k.byFork == byFork {
			all |= k.flag
		}
	}
	return all
}

// Box is how a process is confined.
type Box struct {
	// Users is the range that its own user is taken from at its start; nil for the launcher's user.
	Users *Users `json:"users,omitempty"`
	// UID is its own user, and group; 0 for the launcher's. Groups are those of its devices.
	UID    int   `json:"uid,omitempty"`
	Groups []int `json:"groups,omitempty"`
	// Namespaces are those of its own. In one of mounts only Files are there, in one of networks no
	// interface but a loopback, and in one of processes itself alone, which is the first: the
	// kernel drops signals to it, but for SIGKILL by a process outside, so that Life cannot end it.
	Namespaces []string `json:"namespaces,omitempty"`
	// Networked lets it use the host's networks, and VSock its sockets to virtual machines.
	Networked bool `json:"networked,omitempty"`
	VSock     bool `json:"vsock,omitempty"`
	// Rings lets it make rings (io_uring(7)), whose requests no filter sees.
	Rings bool `json:"rings,omitempty"`
	// Owns lets it change owners and modes of its files.
	Owns bool `json:"owns,omitempty"`
	// Files are all that it can reach by a path. Descriptors that it inherits are not among them.
	Files []File `json:"files"`
	// Landlock is the version of the kernel's rules (landlock(7), ABI); 0 for none.
	Landlock int `json:"landlock,omitempty"`
	// Label is the AppArmor profile that it gets, if that is loaded; "" for none.
	Label string `json:"label,omitempty"`
	// MemoryLock is how much memory it may pin, in bytes; 0 for the launcher's own limit.
	MemoryLock uint64 `json:"memory-lock,omitempty"`
	// Keys leaves it the launcher's session keyring, for a key that was made for it.
	Keys bool `json:"keys,omitempty"`
	// Life is the number of a pipe's end that it inherits: it is killed when the other end is
	// closed. 0 is none.
	Life int `json:"life,omitempty"`
	// Foreground ends the process with the thread that forks it.
	Foreground bool `json:"-"`
	// Missing says what a taken-over process could still do, a sentence each.
	Missing []string `json:"missing,omitempty"`
}

// Has reports whether a box has a namespace of its own.
func (b *Box) Has(namespace string) bool { return slices.Contains(b.Namespaces, namespace) }

// Allow adds a file. Of two rules for one path the wider one counts.
func (b *Box) Allow(a Access, paths ...string) {
	for _, p := range paths {
		if p == "" {
			continue
		}
		p = filepath.Clean(p)
		if i := slices.IndexFunc(b.Files, func(f File) bool { return f.Path == p }); i >= 0 {
			if width(a) > width(b.Files[i].Access) {
				b.Files[i].Access = a
			}
			continue
		}
		b.Files = append(b.Files, File{p, a})
	}
}

// width orders kinds of access. A directory of programs is never written to.
func width(a Access) int { return slices.Index([]Access{Read, Execute, Device, Write}, a) }

// sorted are the files, a directory before what is below it.
func (b *Box) sorted() []File {
	files := slices.Clone(b.Files)
	// A generic sort of this type would be a page of the program.
	sort.Slice(files, func(i, j int) bool {
		x, y := files[i].Path, files[j].Path
		deep := strings.Count(x, "/") - strings.Count(y, "/")
		return deep < 0 || deep == 0 && x < y
	})
	return files
}

// resolved is the box with what its symbolic links lead to.
func (b *Box) resolved() *Box {
	all := *b
	all.Files = slices.Clone(b.Files)
	for _, f := range b.Files {
		if real, err := filepath.EvalSymlinks(f.Path); err == nil {
			all.Allow(f.Access, real)
		}
	}
	return &all
}

// Reaches reports whether a box lets a process reach a path in any way.
func (b *Box) Reaches(path string) bool {
	for _, f := range b.Files {
		if path == f.Path || f.Path == "/" || strings.HasPrefix(path, f.Path+"/") {
			return true
		}
	}
	return false
}
