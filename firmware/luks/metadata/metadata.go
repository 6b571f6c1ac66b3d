// Package metadata reads the metadata of a LUKS2 volume as strictly as cryptsetup reads them
// leniently: who opens a volume by a secret that a disk's thief does not have must know that the
// volume really is encrypted by it. What it does not know it refuses.
//
// Source: LUKS2 On-Disk Format Specification 1.1.4, sections 2 and 3.
package metadata

import (
	"bytes"
	"cmp"
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
	csumAt     = 0x1c0
	csumEnd    = csumAt + 64
	algAt      = 72
	algEnd     = algAt + 32
)

var magic, second = []byte("LUKS\xba\xbe\x00\x02"), []byte("SKUL\xba\xbe")

// sizes are those that metadata may have; the second copy follows the first (section 2.2).
var sizes = []int64{0x4000, 0x8000, 0x10000, 0x20000, 0x40000, 0x80000, 0x100000, 0x200000, 0x400000}

// Metadata are those of a volume.
type Metadata struct {
	Tokens []json.RawMessage // by their number

	head []byte // the binary header, and
	text []byte // the metadata without tokens, as they are written again
}

type object = map[string]any

// Use reads the metadata of a copy of a header, and makes the copy say only what was read, without
// tokens: cryptsetup would open a volume by a token of another's before it takes a key (cryptsetup
// (8), "open"). The second copy of the metadata goes too.
func Use(f *os.File) (*Metadata, error) {
	m, err := Read(f)
	if err != nil {
		return nil, err
	}
	all := make([]byte, binary.BigEndian.Uint64(m.head[8:]))
	copy(all, m.head)
	copy(all[binarySize:], m.text)
	clear(all[csumAt:csumEnd])
	sum, err := checksum(all)
	if err != nil {
		return nil, err
	}
	copy(all[csumAt:], sum)
	if _, err := f.WriteAt(all, 0); err != nil {
		return nil, err
	}
	zero := make([]byte, len(second))
	for _, at := range sizes {
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
	if !slices.Contains(sizes, int64(size)) {
		return nil, fmt.Errorf("%w: metadata of %d bytes", luks.ErrFormat, size)
	}
	all := make([]byte, size)
	if _, err := r.ReadAt(all, 0); err != nil {
		return nil, fmt.Errorf("%w: its metadata are cut off", luks.ErrFormat)
	}
	has := bytes.Clone(all[csumAt:csumEnd])
	clear(all[csumAt:csumEnd])
	sum, err := checksum(all)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(has, append(sum, make([]byte, len(has)-len(sum))...)) {
		return nil, fmt.Errorf("%w: its checksum is wrong", luks.ErrFormat)
	}
	text, rest, _ := bytes.Cut(all[binarySize:], []byte{0})
	if len(bytes.Trim(rest, "\x00")) > 0 {
		return nil, fmt.Errorf("%w: there is something behind its metadata", ErrUnsafe)
	}
	m, err := parse(text)
	if err != nil {
		return nil, err
	}
	m.head = head
	if int64(len(m.text)) >= int64(size)-binarySize {
		return nil, fmt.Errorf("%w: its metadata are too long", luks.ErrFormat)
	}
	return m, nil
}

// checksum is that of a header whose own is zero (section 2.1).
func checksum(zeroed []byte) ([]byte, error) {
	name, _, _ := bytes.Cut(zeroed[algAt:algEnd], []byte{0})
	switch string(name) {
	case "sha256":
		s := sha256.Sum256(zeroed)
		return s[:], nil
	case "sha512":
		s := sha512.Sum512(zeroed)
		return s[:], nil
	}
	return nil, fmt.Errorf("%w: a checksum by %q", luks.ErrFormat, name)
}

// names are those that members have. cryptsetup's parser ends a name at a NUL, so that it would
// read another member than is read here.
var names = regexp.MustCompile(`^[A-Za-z0-9_.:-]+$`)

// checkNames is an error if a member has another name.
func checkNames(v any) error {
	switch v := v.(type) {
	case object:
		for name, x := range v {
			if !names.MatchString(name) {
				return fmt.Errorf("%w: a member is named %q", ErrUnsafe, name)
			}
			if err := checkNames(x); err != nil {
				return err
			}
		}
	case []any:
		for _, x := range v {
			if err := checkNames(x); err != nil {
				return err
			}
		}
	}
	return nil
}

func parse(text []byte) (*Metadata, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var top object
	if err := d.Decode(&top); err != nil {
		return nil, fmt.Errorf("%w: %w", luks.ErrFormat, err)
	}
	if d.More() {
		return nil, fmt.Errorf("%w: there is something behind its metadata", ErrUnsafe)
	}
	if err := checkNames(top); err != nil {
		return nil, err
	}
	segments, err := members(top, "segments")
	if err != nil {
		return nil, err
	}
	keyslots, err := members(top, "keyslots")
	if err != nil {
		return nil, err
	}
	if len(segments) != 1 || segments["0"] == nil || len(keyslots) == 0 {
		return nil, fmt.Errorf("%w: it has not one segment and key slots", ErrUnsafe)
	}
	if err := checkSegment(segments["0"]); err != nil {
		return nil, fmt.Errorf("%w: segment 0: %w", ErrUnsafe, err)
	}
	for id, s := range keyslots {
		if err := checkKeyslot(s); err != nil {
			return nil, fmt.Errorf("%w: key slot %s: %w", ErrUnsafe, id, err)
		}
	}
	m := &Metadata{}
	if top["tokens"] != nil {
		if err := m.take(top); err != nil {
			return nil, err
		}
	}
	top["tokens"] = object{}
	m.text, err = encode(top)
	return m, err
}

// take takes the tokens, in the order of their numbers.
func (m *Metadata) take(top object) error {
	tokens, err := members(top, "tokens")
	if err != nil {
		return err
	}
	byNumber := func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) }
	for _, id := range slices.SortedFunc(maps.Keys(tokens), byNumber) {
		b, err := encode(tokens[id])
		if err != nil {
			return err
		}
		m.Tokens = append(m.Tokens, b)
	}
	return nil
}

// encode writes JSON as cryptsetup does: without escapes.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSpace(b.Bytes()), err
}

// members are the objects of an object. encoding/json would take fields of a struct in any case of
// letters, and so read other ones than cryptsetup does.
func members(o object, name string) (map[string]object, error) {
	list, ok := o[name].(object)
	if !ok {
		return nil, fmt.Errorf("%w: it has no %s", luks.ErrFormat, name)
	}
	m := map[string]object{}
	for id, v := range list {
		if m[id], ok = v.(object); !ok {
			return nil, fmt.Errorf("%w: %s %s is not an object", luks.ErrFormat, name, id)
		}
	}
	return m, nil
}

// is is an error unless a member has a value.
func is(o object, name, want string) error {
	if o[name] != want {
		return fmt.Errorf("its %s is %q, must be %q", name, o[name], want)
	}
	return nil
}

// ciphers are those that encrypt (dm-crypt's names).
var ciphers = regexp.MustCompile(
	`^((aes|serpent|twofish|camellia|aria|sm4)-(xts-plain64|xts-plain64be|cbc-essiv:sha256)|` +
		`xchacha(12|20),aes-adiantum-plain64)$`)

func checkCipher(o object) error {
	if name, ok := o["encryption"].(string); !ok || !ciphers.MatchString(name) {
		return fmt.Errorf("the cipher %q is not known to encrypt", o["encryption"])
	}
	return nil
}

// checkSegment is an error unless all that is behind the header is one segment that is encrypted
// from its beginning: one that begins elsewhere shows other data as the first.
func checkSegment(o object) error {
	if _, ok := o["integrity"]; ok {
		return errors.New("its integrity is not known here")
	}
	if _, ok := o["flags"]; ok {
		return errors.New("it has flags")
	}
	return cmp.Or(is(o, "type", "crypt"), is(o, "size", "dynamic"), is(o, "iv_tweak", "0"), checkCipher(o))
}

func checkKeyslot(o object) error {
	area, ok := o["area"].(object)
	if !ok {
		return errors.New("it has no area")
	}
	return cmp.Or(is(o, "type", "luks2"), is(area, "type", "raw"), checkCipher(area))
}
