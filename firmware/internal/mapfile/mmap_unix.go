//go:build unix

package mapfile

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func mapped(f *os.File, size int) (b []byte, done func(), err error) {
	b, err = unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: map: %w", f.Name(), err)
	}
	return b, func() { _ = unix.Munmap(b) }, nil
}
