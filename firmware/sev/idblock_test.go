package sev

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/internal/vectors"
)

func newKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestIDBlockVectors(t *testing.T) {
	vectors.Each(t, "snp-id-block", func(t *testing.T, v vectors.Vector) {
		var in struct{ Measurement string }
		v.In(t, &in)
		var want struct {
			Block []byte `json:"id_block_base64"`
		}
		v.Want(t, &want)
		id := IDBlock{Version: 1, Policy: 0x30000}
		if n, err := hex.Decode(id.Digest[:], []byte(in.Measurement)); err != nil || n != 48 {
			t.Fatal(n, err)
		}
		if !bytes.Equal(id.Bytes(), want.Block) {
			t.Errorf("block %x, want %x", id.Bytes(), want.Block)
		}
	})
}

func TestIDBlock(t *testing.T) {
	id := IDBlock{FamilyID: [16]byte{1}, ImageID: [16]byte{2}, Version: 1, SVN: 7, Policy: 0x30000}
	id.Digest.Extend(PageZero, 0x1000, [48]byte{})
	b := id.Bytes()
	if back, err := ParseIDBlock(b); err != nil || back != id || len(b) != IDBlockSize {
		t.Fatalf("%+v, %v", back, err)
	}
	if _, err := ParseIDBlock(b[1:]); err == nil {
		t.Error("a short id block parses")
	}
	key, author := newKey(t, elliptic.P384()), newKey(t, elliptic.P384())
	auth, err := SignIDBlock(rand.Reader, id, key, author)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := VerifyIDAuth(id, auth, true)
	if err != nil || !keys.ID.Equal(&key.PublicKey) || !keys.Author.Equal(&author.PublicKey) || !HasAuthor(auth) {
		t.Fatalf("%+v, %v", keys, err)
	}
	other := id
	other.SVN++
	if _, err := VerifyIDAuth(other, auth, true); !errors.Is(err, ErrIDAuthSignature) {
		t.Errorf("another block: %v", err)
	}
	if _, err := SignIDBlock(rand.Reader, id, newKey(t, elliptic.P256()), nil); err == nil {
		t.Error("a key on another curve signs")
	}
	plain, err := SignIDBlock(rand.Reader, id, key, nil)
	if err != nil || HasAuthor(plain) {
		t.Error(err)
	}
	if _, err := VerifyIDAuth(id, plain, true); !errors.Is(err, ErrIDAuthFormat) {
		t.Errorf("no author where one is asked for: %v", err)
	}
}

// TestIDAuthFlipped flips bits all over the structure: wherever something is
// signed or signs, it must be noticed.
func TestIDAuthFlipped(t *testing.T) {
	id := IDBlock{Version: 1, Policy: 0x30000}
	auth, err := SignIDBlock(rand.Reader, id, newKey(t, elliptic.P384()), newKey(t, elliptic.P384()))
	if err != nil {
		t.Fatal(err)
	}
	for _, area := range []struct{ from, to int }{
		{0, 8},
		{0x40, 0x40 + 144},
		{0x240, 0x240 + 148},
		{0x680, 0x680 + 144},
		{0x880, 0x880 + 148},
	} {
		for off := area.from; off < area.to; off += 5 {
			bad := bytes.Clone(auth)
			bad[off] ^= 1 << (off % 8)
			if _, err := VerifyIDAuth(id, bad, true); err == nil {
				t.Errorf("bit at %#x is not noticed", off)
			}
		}
	}
}

// TestKeyDigest: a key is named by the hash of its structure, as it stands in the ID
// authentication structure.
func TestKeyDigest(t *testing.T) {
	key := newKey(t, elliptic.P384())
	auth, err := SignIDBlock(rand.Reader, IDBlock{Version: 1}, key, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := KeyDigest(&key.PublicKey)
	if want := sha512.Sum384(auth[authIDKey : authIDKey+publicKeySize]); err != nil || got != want {
		t.Errorf("digest %x, %v, want %x", got, err, want)
	}
	if got, err := KeyDigest(&newKey(t, elliptic.P256()).PublicKey); err == nil || got != [48]byte{} {
		t.Errorf("of a key on P-256: %x, %v, want an error", got, err)
	}
	if _, err := SignIDBlock(rand.Reader, IDBlock{}, key, newKey(t, elliptic.P256())); err == nil {
		t.Error("an author's key on P-256 signs, want an error")
	}
}
