// Package metadata reads the metadata of a LUKS2 volume as strictly as cryptsetup reads them
// leniently: who opens a volume by a secret that a disk's thief does not have must know that the
// volume really is encrypted by it. What it does not know it refuses.
//
// Source: LUKS2 On-Disk Format Specification 1.1.4, sections 2 and 3.
package metadata

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"

	"github.com/vmlatch/vmlatch/firmware/luks"
)

// ErrUnsafe is wrapped by errors about volumes whose header does not say that a key is needed.
var ErrUnsafe = errors.New("the disk's header is not safe")

// Places in a header (section 2.1).
const (
	binarySize = 4096
	maxSize    = 4 << 20
	csumAt     = 0x1c0
	csumEnd    = csumAt + 64
	algAt      = 72
	algEnd     = algAt + 32
)

var magic, second = []byte("LUKS\xba\xbe\x00\x02"), []byte("SKUL\xba\xbe")

// seconds are where cryptsetup looks for the second copy of the metadata, if the first is damaged.
var seconds = []int64{
	0x4000, 0x8000, 0x10000, 0x20000, 0x40000, 0x80000, 0x100000, 0x200000, 0x400000,
}

// Metadata are those of a volume.
type Metadata struct {
	Tokens []json.RawMessage // by their number
}

type object = map[string]json.RawMessage

// Use reads the metadata of a copy of a header, and makes the copy say nothing else: its second
// metadata are removed, so that cryptsetup reads those that were looked at.
func Use(f *os.File) (*Metadata, error) {
	m, err := Read(f)
	if err != nil {
		return nil, err
	}
	zero := make([]byte, len(second))
	for _, at := range seconds {
		b := make([]byte, len(second))
		if _, err := f.ReadAt(b, at); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		if bytes.Equal(b, second) {
			if _, err := f.WriteAt(zero, at); err != nil {
				return nil, err
			}
		}
	}
	return m, nil
}

// Read reads the first metadata of a header, whose checksum must be right.
func Read(r io.ReaderAt) (*Metadata, error) {
	head := make([]byte, binarySize)
	if _, err := r.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("%w: %w", luks.ErrFormat, err)
	}
	if !bytes.HasPrefix(head, magic) {
		return nil, fmt.Errorf("%w of version 2", luks.ErrFormat)
	}
	size := binary.BigEndian.Uint64(head[8:])
	if size <= binarySize || size > maxSize {
		return nil, fmt.Errorf("%w: metadata of %d bytes", luks.ErrFormat, size)
	}
	all := make([]byte, size)
	if _, err := r.ReadAt(all, 0); err != nil {
		return nil, fmt.Errorf("%w: its metadata are cut off", luks.ErrFormat)
	}
	if err := checksum(all); err != nil {
		return nil, err
	}
	text, rest, _ := bytes.Cut(all[binarySize:], []byte{0})
	if len(bytes.Trim(rest, "\x00")) > 0 {
		return nil, fmt.Errorf("%w: there is something behind its metadata", ErrUnsafe)
	}
	return parse(text)
}

// checksum is an error unless the header's own is right (section 2.1).
func checksum(all []byte) error {
	name, _, _ := bytes.Cut(all[algAt:algEnd], []byte{0})
	zeroed := bytes.Clone(all)
	clear(zeroed[csumAt:csumEnd])
	var sum []byte
	switch string(name) {
	case "sha256":
		s := sha256.Sum256(zeroed)
		sum = s[:]
	case "sha512":
		s := sha512.Sum512(zeroed)
		sum = s[:]
	default:
		return fmt.Errorf("%w: a checksum by %q", luks.ErrFormat, name)
	}
	if !bytes.Equal(all[csumAt:csumEnd], append(sum, make([]byte, csumEnd-csumAt-len(sum))...)) {
		return fmt.Errorf("%w: its checksum is wrong", luks.ErrFormat)
	}
	return nil
}

func parse(text []byte) (*Metadata, error) {
	var top object
	if err := json.Unmarshal(text, &top); err != nil {
		return nil, fmt.Errorf("%w: %w", luks.ErrFormat, err)
	}
	segments, err := members(top, "segments")
	if err != nil {
		return nil, err
	}
	keyslots, err := members(top, "keyslots")
	if err != nil {
		return nil, err
	}
	if len(segments) == 0 || len(keyslots) == 0 {
		return nil, fmt.Errorf("%w: it has no segment, or no key slot", ErrUnsafe)
	}
	for id, s := range segments {
		if err := checkSegment(s); err != nil {
			return nil, fmt.Errorf("%w: segment %s: %w", ErrUnsafe, id, err)
		}
	}
	for id, s := range keyslots {
		if err := checkKeyslot(s); err != nil {
			return nil, fmt.Errorf("%w: key slot %s: %w", ErrUnsafe, id, err)
		}
	}
	var tokens map[string]json.RawMessage
	if raw, ok := top["tokens"]; ok {
		if err := json.Unmarshal(raw, &tokens); err != nil {
			return nil, fmt.Errorf("%w: tokens: %w", luks.ErrFormat, err)
		}
	}
	m := &Metadata{}
	for _, id := range slices.Sorted(maps.Keys(tokens)) {
		m.Tokens = append(m.Tokens, tokens[id])
	}
	return m, nil
}

// members are the objects of an object. encoding/json would take fields of a struct in any case of
// letters, and so read other ones than cryptsetup does.
func members(o object, name string) (map[string]object, error) {
	var m map[string]object
	if err := json.Unmarshal(o[name], &m); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", luks.ErrFormat, name, err)
	}
	return m, nil
}

func text(o object, name string) (s string, err error) {
	if err = json.Unmarshal(o[name], &s); err != nil {
		err = fmt.Errorf("its %s: %w", name, err)
	}
	return s, err
}

// ciphers are those that encrypt (dm-crypt's names).
var ciphers = regexp.MustCompile(
	`^((aes|serpent|twofish|camellia|aria|sm4)-(xts-plain64|xts-plain64be|cbc-essiv:sha256)|` +
		`xchacha(12|20),aes-adiantum-plain64)$`)

func checkCipher(o object) error {
	name, err := text(o, "encryption")
	if err == nil && !ciphers.MatchString(name) {
		err = fmt.Errorf("the cipher %q is not known to encrypt", name)
	}
	return err
}

func checkSegment(o object) error {
	kind, err := text(o, "type")
	if err == nil && kind != "crypt" {
		err = fmt.Errorf("it is of type %q", kind)
	}
	if _, ok := o["integrity"]; ok && err == nil {
		err = errors.New("its integrity is not known here")
	}
	if err != nil {
		return err
	}
	return checkCipher(o)
}

func checkKeyslot(o object) error {
	kind, err := text(o, "type")
	if err == nil && kind != "luks2" {
		err = fmt.Errorf("it is of type %q", kind)
	}
	if err != nil {
		return err
	}
	var area object
	if err := json.Unmarshal(o["area"], &area); err != nil {
		return fmt.Errorf("its area: %w", err)
	}
	if kind, err = text(area, "type"); err == nil && kind != "raw" {
		err = fmt.Errorf("its area is of type %q", kind)
	}
	if err != nil {
		return err
	}
	return checkCipher(area)
}
