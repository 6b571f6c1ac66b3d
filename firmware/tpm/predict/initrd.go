package predict

import (
	"hash"
	"io"

	"github.com/vmlatch/vmlatch/firmware/eventlog"
)

// Initrd is an initial RAM disk: its size and its digests, as a file may be large.
type Initrd struct {
	Size    int64
	Digests map[eventlog.Bank][]byte
}

// HashInitrd hashes one in all banks at once.
func HashInitrd(initrd io.WriterTo, banks ...eventlog.Bank) (*Initrd, error) {
	var all []io.Writer
	var hashes []hash.Hash
	for _, b := range banks {
		h := b.Hash().New()
		hashes, all = append(hashes, h), append(all, h)
	}
	i := &Initrd{Digests: map[eventlog.Bank][]byte{}}
	var err error
	if i.Size, err = initrd.WriteTo(io.MultiWriter(all...)); err != nil {
		return nil, err
	}
	for n, b := range banks {
		i.Digests[b] = hashes[n].Sum(nil)
	}
	return i, nil
}
