package uefivar

import (
	"encoding/binary"
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/guid"
)

// GUIDX509 marks signatures that are certificates (UEFI 2.10, section 32.4.1, EFI_CERT_X509_GUID).
var GUIDX509 = guid.MustParse("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")

// Signature is an entry of a database of keys, as PK, KEK, db and dbx are.
type Signature struct {
	Kind  guid.GUID // [GUIDX509], or one of hashes
	Owner guid.GUID
	Data  []byte
	Entry []byte // owner and data: what firmware measures of it
}

// Signatures reads a database (UEFI 2.10, section 32.4.1, EFI_SIGNATURE_LIST).
func Signatures(b []byte) (list []Signature, err error) {
	const header, owner = 28, 16
	le := binary.LittleEndian
	for len(b) > 0 {
		if len(b) < header {
			return nil, fmt.Errorf("%w: a list of signatures is cut off", ErrFormat)
		}
		size, extra, each := le.Uint32(b[16:]), le.Uint32(b[20:]), le.Uint32(b[24:])
		if uint64(size) > uint64(len(b)) || uint64(size) < header+uint64(extra) || each <= owner {
			return nil, fmt.Errorf("%w: a list of signatures does not fit", ErrFormat)
		}
		for e := b[header+extra : size]; len(e) >= int(each); e = e[each:] {
			list = append(list, Signature{
				Kind: guid.GUID(b[:16]), Owner: guid.GUID(e[:owner]), Data: e[owner:each], Entry: e[:each],
			})
		}
		b = b[size:]
	}
	return list, nil
}
