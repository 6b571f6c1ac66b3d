package predict

import (
	"hash"
	"io"

	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/regular"
)

// Initrd is an initial RAM disk: its size and its digests, as a file may be large.
type Initrd struct {
	Size    int64
	Digests map[eventlog.Bank][]byte
}

// maxInitrd bounds an initial RAM disk, in bytes: Linux takes none that ends beyond 4 GiB
// (Documentation/arch/x86/boot.rst, ramdisk_max).
const maxInitrd = 1 << 32

// HashInitrd hashes a file in all banks at once.
func HashInitrd(name string, banks ...eventlog.Bank) (*Initrd, error) {
	f, err := regular.OpenInput(name, maxInitrd)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []io.Writer
	var hashes []hash.Hash
	for _, b := range banks {
		h := b.Hash().New()
		hashes, all = append(hashes, h), append(all, h)
	}
	i := &Initrd{Digests: map[eventlog.Bank][]byte{}}
	if i.Size, err = io.Copy(io.MultiWriter(all...), f); err != nil {
		return nil, err
	}
	for n, b := range banks {
		i.Digests[b] = hashes[n].Sum(nil)
	}
	return i, nil
}
