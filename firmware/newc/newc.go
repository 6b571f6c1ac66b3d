// Package newc writes archives in the "newc" cpio format, which Linux unpacks as an initrd (Linux,
// Documentation/driver-api/early-userspace/buffer-format.rst). Equal inputs give equal bytes, so
// that what is written can be measured.
package newc

import (
	"bufio"
	"fmt"
	"io"
	"path"
	"strings"
)

// File is one file or directory of the archive.
type File struct {
	Name string // path without a leading slash
	Mode uint32 // S_IFMT bits and permissions
	Data []byte
}

// Modes of the kinds of file that an initrd needs.
const (
	ModeDir     = 0o040755
	ModeExec    = 0o100755
	ModeFile    = 0o100644
	ModePrivate = 0o100400 // a file for root alone
)

// Write writes the archive. Parent directories must come before what is in them.
func Write(w io.Writer, files []File) error {
	b := bufio.NewWriter(w)
	for i, f := range append(files, File{Name: "TRAILER!!!"}) {
		if f.Name == "" || strings.HasPrefix(f.Name, "/") || path.Clean(f.Name) != f.Name {
			return fmt.Errorf("newc: %q is not a clean relative path", f.Name)
		}
		ino, links := i+1, 1
		if f.Mode == 0 {
			ino = 0
		}
		// magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor,
		// devminor, rdevmajor, rdevminor, namesize, check
		fmt.Fprintf(b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
			ino, f.Mode, 0, 0, links, 0, len(f.Data), 0, 0, 0, 0, len(f.Name)+1, 0)
		b.WriteString(f.Name + "\x00")
		pad(b, 110+len(f.Name)+1)
		b.Write(f.Data)
		pad(b, len(f.Data))
	}
	return b.Flush()
}

// pad fills up to a multiple of 4 bytes.
func pad(b *bufio.Writer, n int) { b.WriteString("\x00\x00\x00"[:(4-n%4)%4]) }
