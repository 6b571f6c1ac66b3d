package plan

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/launcher/internal/argv"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// Share is a table [[share]]: a directory of the host's that the guest can mount.
type Share struct {
	Path     string `toml:"path"`
	Tag      string `toml:"tag"`  // the name by which the guest mounts it
	Mode     string `toml:"mode"` // virtiofs, 9p
	ReadOnly bool   `toml:"read-only"`
}

// Modes of shares.
const (
	ShareVirtioFS = "virtiofs" // by a program of its own, fast; it needs root
	Share9P       = "9p"       // by QEMU itself
)

// Shares are the directories, in order.
type Shares []Share

// maxTag is the longest tag, in bytes (QEMU, hw/9pfs/9p.h, MAX_TAG_LEN).
const maxTag = 31

func (all *Shares) complete(g *Guest) error {
	tags := map[string]bool{}
	for i := range *all {
		s, key := &(*all)[i], fmt.Sprintf("share %d", i+1)
		if s.Mode == "" {
			s.Mode = ShareVirtioFS
		}
		if err := OneOf(g.File, key+".mode", s.Mode, ShareVirtioFS, Share9P); err != nil {
			return err
		}
		switch {
		case s.Mode == ShareVirtioFS && s.ReadOnly:
			return g.File.Errorf(key+".read-only", `needs mode = "9p": not every virtiofsd can`)
		case s.Mode == ShareVirtioFS && strings.ContainsRune(s.Path, ','):
			return g.File.Errorf(key+".path", `%q: a comma needs mode = "9p"`, s.Path)
		case s.Path == "":
			return g.File.Errorf(key+".path", "is missing")
		case s.Tag == "" || len(s.Tag) > maxTag || !isSerial(s.Tag):
			return g.File.Errorf(
				key+".tag",
				"%q: must be up to %d letters, digits, dots, dashes and underscores",
				s.Tag,
				maxTag,
			)
		case s.Mode == ShareVirtioFS && g.Backend.Type == "ram":
			return g.File.Errorf(key+".mode", `virtiofs needs memory of type = "memfd" ([memory-backend])`)
		case tags[s.Tag]:
			return g.File.Errorf(key+".tag", "%q: another share has it", s.Tag)
		}
		tags[s.Tag] = true
		s.Path = g.File.Abs(s.Path)
		if err := g.File.NoNUL(s.Path); err != nil {
			return err
		}
	}
	return nil
}

func (all *Shares) build(b *Builder) error {
	for i, s := range *all {
		id := fmt.Sprintf("share%d", i)
		b.Choose("share", s.Tag+" is "+s.Path, b.Guest.File.From("share"))
		if s.Mode == ShareVirtioFS {
			b.virtiofs(id, &s)
			continue
		}
		// Owners and modes that the guest sets are kept next to the files: QEMU need not be root.
		model := "mapped-xattr"
		if s.ReadOnly {
			model = "none"
		}
		fs := argv.New("local").Set("id", id).Set("path", s.Path).Set("security_model", model).
			Set("multidevs", "remap")
		if s.ReadOnly {
			fs.SetBool("readonly", true)
		}
		b.Option("-fsdev", fs.String(), "-device", argv.New("virtio-9p-pci").Set("id", "dev-"+id).Set("fsdev", id).
			Set("mount_tag", s.Tag).String())
	}
	return nil
}

// virtioFS reports whether a share needs memory that a program besides QEMU can reach.
func (all Shares) virtioFS() bool {
	return slices.ContainsFunc(all, func(s Share) bool { return s.Mode == ShareVirtioFS })
}

// virtiofs starts virtiofsd, which listens on a socket that QEMU connects to, and ends when QEMU
// does.
func (b *Builder) virtiofs(id string, s *Share) {
	h := Helper{Role: id, Meaning: "virtiofsd, for the directory " + s.Path}
	socket := rundir.ShareSocket(id)
	fd := inherit(&h.FDs, FD{
		Role: id, Meaning: "a listening socket, for QEMU",
		open: func(o *Opening) (*os.File, error) { return listen(o.Dir.Path(socket)) },
	})
	inherit(&h.FDs, FD{Role: "helper-lock", Meaning: "the lock by which it is found", open: helperLock})
	h.Argv = []string{b.Facts.VirtioFSD, "--fd=" + strconv.Itoa(fd), "-o", "source=" + s.Path}
	b.plan.Helpers = append(b.plan.Helpers, h)
	b.Option("-chardev", argv.New("socket").Set("id", id).Set("path", b.InDir(socket)).String(), "-device",
		argv.New("vhost-user-fs-pci").Set("id", "dev-"+id).Set("chardev", id).Set("tag", s.Tag).String())
}
