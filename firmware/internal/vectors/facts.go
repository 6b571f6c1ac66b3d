package vectors

import (
	"crypto/sha256"
	"crypto/sha512"
	_ "embed"
	"encoding"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"hash"
	"os"
	"sync"
	"testing"
)

//go:embed facts.json
var factsJSON []byte

// Firmware is what of a firmware image the measurements depend on. It stands for
// the image where only a measurement of the whole is wanted.
type Firmware struct {
	Size        int     `json:"size"`
	Tables      []Patch `json:"tables,omitempty"` // the GUIDed table and metadata
	SHA256      State   `json:"sha256"`           // after all bytes
	PagesDigest string  `json:"snp_pages,omitempty"`
	MRTD        *MRTD   `json:"mrtd,omitempty"`
}

// Patch is some bytes of an image, by their distance from its end.
type Patch struct {
	Back int    `json:"back"`
	Hex  string `json:"hex"`
}

// MRTD are measurements of a trust domain under way, after the sections from the
// start of the metadata whose contents come from the image.
type MRTD struct {
	Upstream *Sections `json:"upstream,omitempty"` // sections marked MR.EXTEND are measured
	GCE      *Sections `json:"gce,omitempty"`      // all sections are measured
}

// Sections is the state after some sections.
type Sections struct {
	Count int   `json:"count"`
	State State `json:"state"`
}

// State is the state of a hash between two of its blocks.
type State struct {
	Hex    string `json:"hex"`
	Length uint64 `json:"length"`         // bytes so far
	Rest   string `json:"rest,omitempty"` // hex of those of an unfinished block
}

var loadFacts = sync.OnceValues(func() (f map[string]*Firmware, err error) {
	err = json.Unmarshal(factsJSON, &f)
	return f, err
})

// Facts returns what is recorded of a named firmware image. Nothing may change it.
func Facts(t testing.TB, name string) *Firmware {
	t.Helper()
	facts, err := loadFacts()
	if err != nil {
		t.Fatal(err)
	}
	f, ok := facts[name]
	if !ok && os.Getenv(moreVar) != "" {
		t.Skipf("no facts about %s are recorded: a vector of %s wants it", name, moreVar)
	}
	if !ok {
		t.Fatalf("no facts about %s are recorded", name)
	}
	return f
}

// Skeleton is an image of the right size that has the right tables, and zeros for
// the rest.
func (f *Firmware) Skeleton(t testing.TB) []byte {
	t.Helper()
	b := make([]byte, f.Size)
	for _, p := range f.Tables {
		if _, err := hex.Decode(b[f.Size-p.Back:], []byte(p.Hex)); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// The layout of a saved hash of the standard library: a magic number, the state,
// one block, the length.
const (
	magic256 = "sha\x03"
	magic384 = "sha\x04"
)

// SHA256 returns a hash that goes on from the state.
func (s State) SHA256(t testing.TB) hash.Cloner {
	t.Helper()
	return s.restore(t, sha256.New(), magic256)
}

// SHA384 returns a hash that goes on from the state.
func (s State) SHA384(t testing.TB) hash.Cloner {
	t.Helper()
	return s.restore(t, sha512.New384(), magic384)
}

func (s State) restore(t testing.TB, h hash.Hash, magic string) hash.Cloner {
	t.Helper()
	block := make([]byte, h.BlockSize())
	state, err := hex.DecodeString(s.Hex)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hex.Decode(block, []byte(s.Rest)); err != nil {
		t.Fatal(err)
	}
	saved := append(append([]byte(magic), state...), block...)
	saved = binary.BigEndian.AppendUint64(saved, s.Length)
	if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(saved); err != nil {
		t.Fatal(err)
	}
	return h.(hash.Cloner)
}

// StateOf saves a hash for SHA256 or SHA384.
func StateOf(t testing.TB, h hash.Hash) State {
	t.Helper()
	saved, err := h.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	block := h.BlockSize()
	state, tail := saved[len(magic256):len(saved)-8-block], saved[len(saved)-8-block:]
	length := binary.BigEndian.Uint64(tail[block:])
	return State{
		Hex:    hex.EncodeToString(state),
		Length: length,
		Rest:   hex.EncodeToString(tail[:length%uint64(block)]),
	}
}
