package confine

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// system is where programs, libraries and their data are on every host.
var system = []string{"/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc/ld.so.cache", "/etc/alternatives"}

// stores have every program's libraries in directories of their own.
var stores = []string{"/nix/store", "/gnu/store"}

// Program lists what a program must read to start: itself, its libraries, and what was installed
// with it. It follows what the program itself says (ld.so(8)), and runs nothing. A script is an
// error: what it starts, and reads, is its own matter.
func Program(path string) ([]File, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(real)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	i, err := readImage(f)
	if err != nil {
		return nil, fmt.Errorf("%s %w", path, err)
	}
	bin := filepath.Dir(real)
	want := append([]string{}, system...)
	want = append(want, path, real, i.interpreter)
	for _, s := range stores {
		if strings.HasPrefix(real, s+"/") {
			want = append(want, s)
		}
	}
	for _, dir := range append(i.paths, filepath.SplitList(os.Getenv("LD_LIBRARY_PATH"))...) {
		dir = strings.NewReplacer("$ORIGIN", bin, "${ORIGIN}", bin).Replace(dir)
		if narrow(dir) {
			want = append(want, dir)
		}
	}
	// A build's data lies next to it (QEMU, system/datadir.c).
	want = append(want, filepath.Join(bin, "qemu-bundle"), filepath.Join(bin, "pc-bios"))
	if prefix := filepath.Dir(bin); filepath.Base(bin) == "bin" {
		for _, dir := range []string{"lib", "lib64", "libexec", "share"} {
			want = append(want, filepath.Join(prefix, dir))
		}
	}
	return present(want), nil
}

// present are the files that are there and that no other covers, and for a symbolic link also what
// it leads to.
func present(paths []string) []File {
	b := &Box{}
	for _, p := range paths {
		real, err := filepath.EvalSymlinks(p)
		if err != nil {
			continue
		}
		for _, p := range []string{p, real} {
			if !b.Reaches(p) {
				b.Allow(Execute, p)
			}
		}
	}
	return b.Files
}

// narrow reports whether a directory holds programs, and not all that a user or a host has.
func narrow(dir string) bool {
	home, _ := os.UserHomeDir()
	dir = filepath.Clean(dir)
	return filepath.IsAbs(dir) && dir != home && strings.Count(dir, "/") > 1
}
