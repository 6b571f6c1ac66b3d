// Command mkinitrd packs the test guest's init into an initrd.
package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vmlatch/vmlatch/integration/guest/initrd"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: mkinitrd INIT OUT")
		os.Exit(2)
	}
	if err := pack(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "mkinitrd:", err)
		os.Exit(1)
	}
}

func pack(program, out string) error {
	init, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	err = initrd.Write(&b, []initrd.File{
		{Name: "dev", Mode: initrd.ModeDir},
		{Name: "proc", Mode: initrd.ModeDir},
		{Name: "sys", Mode: initrd.ModeDir},
		{Name: "init", Mode: initrd.ModeExec, Data: init},
	})
	if err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(out), "."+filepath.Base(out)+".tmp")
	if err := os.WriteFile(tmp, b.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, out)
}
