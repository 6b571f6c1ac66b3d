// Command mkinitrd packs the test guest's init into an initrd, and modules of its kernel, which
// the guest loads in the order in which they are given. Compressed ones (.xz) are unpacked.
package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/ulikunitz/xz"

	"github.com/vmlatch/vmlatch/firmware/newc"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: mkinitrd INIT OUT [MODULE...]")
		os.Exit(2)
	}
	if err := pack(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, "mkinitrd:", err)
		os.Exit(1)
	}
}

func pack(program, out string, modules []string) error {
	init, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	files := []newc.File{
		{Name: "dev", Mode: newc.ModeDir},
		{Name: "modules", Mode: newc.ModeDir},
		{Name: "proc", Mode: newc.ModeDir},
		{Name: "sys", Mode: newc.ModeDir},
		{Name: "init", Mode: newc.ModeExec, Data: init},
	}
	for i, m := range modules {
		b, err := module(m)
		if err != nil {
			return fmt.Errorf("%s: %w", m, err)
		}
		name := strings.TrimSuffix(filepath.Base(m), ".xz")
		files = append(files, newc.File{Name: fmt.Sprintf("modules/%d-%s", i, name), Mode: newc.ModeFile, Data: b})
	}
	var b bytes.Buffer
	if err := newc.Write(&b, files); err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(out), "."+filepath.Base(out)+".tmp")
	if err := os.WriteFile(tmp, b.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, out)
}

// module reads a kernel module.
func module(name string) ([]byte, error) {
	b, err := os.ReadFile(name)
	if err != nil || !strings.HasSuffix(name, ".xz") {
		return b, err
	}
	r, err := xz.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}
