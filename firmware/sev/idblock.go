package sev

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha512"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"

	"github.com/vmlatch/vmlatch/firmware/internal/octets"
)

// Sizes in bytes of the structures that bind an SNP launch to its owner (SNP
// ABI, chapter 8.18, SNP_LAUNCH_FINISH).
const (
	IDBlockSize   = 96
	IDAuthSize    = 4096
	publicKeySize = 0x404
)

// Offsets in the ID authentication structure (SNP ABI, chapter 8.18).
const (
	authBlockSignature = 0x040
	authIDKey          = 0x240
	authKeySignature   = 0x680
	authAuthorKey      = 0x880
)

// algoECDSAP384SHA384 is the one signature algorithm (SNP ABI, chapter 10).
const algoECDSAP384SHA384 = 1

// IDBlock is what a guest's owner signs: the digest that a launch must have, and
// how the guest is called (SNP ABI, chapter 8.18, ID_BLOCK).
type IDBlock struct {
	Digest   SNPDigest
	FamilyID [16]byte
	ImageID  [16]byte
	Version  uint32 // 1
	SVN      uint32 // security version number
	Policy   uint64
}

// ParseIDBlock reads the 96 bytes.
func ParseIDBlock(b []byte) (IDBlock, error) {
	var id IDBlock
	if len(b) != IDBlockSize {
		return id, fmt.Errorf("id block: %d bytes, must be %d", len(b), IDBlockSize)
	}
	copy(id.Digest[:], b)
	copy(id.FamilyID[:], b[48:])
	copy(id.ImageID[:], b[64:])
	le := binary.LittleEndian
	id.Version, id.SVN, id.Policy = le.Uint32(b[80:]), le.Uint32(b[84:]), le.Uint64(b[88:])
	return id, nil
}

// Bytes returns the 96 bytes that ParseIDBlock takes.
func (id IDBlock) Bytes() []byte {
	le := binary.LittleEndian
	b := slices.Concat(id.Digest[:], id.FamilyID[:], id.ImageID[:])
	b = le.AppendUint32(b, id.Version)
	b = le.AppendUint32(b, id.SVN)
	return le.AppendUint64(b, id.Policy)
}

var errIDKey = errors.New("ID and author keys must be on the curve P-384")

// publicKey is a key as the firmware reads it: curve, then the coordinates
// little-endian in 72 bytes each.
func publicKey(k *ecdsa.PublicKey) ([publicKeySize]byte, error) {
	var b [publicKeySize]byte
	if k.Curve != elliptic.P384() {
		return b, errIDKey
	}
	binary.LittleEndian.PutUint32(b[:], curveP384)
	point, err := k.Bytes() // uncompressed: 4, then both coordinates
	if err != nil {
		return b, err
	}
	putCoordinate(b[4:], new(big.Int).SetBytes(point[1:49]))
	putCoordinate(b[76:], new(big.Int).SetBytes(point[49:]))
	return b, nil
}

// KeyDigest is how reports name a key: SHA-384 of its structure (SNP ABI,
// chapter 7.3, ID_KEY_DIGEST and AUTHOR_KEY_DIGEST).
func KeyDigest(k *ecdsa.PublicKey) ([48]byte, error) {
	b, err := publicKey(k)
	if err != nil {
		return [48]byte{}, err
	}
	return sha512.Sum384(b[:]), nil
}

func putCoordinate(dst []byte, n *big.Int) {
	b := n.FillBytes(make([]byte, 72))
	slices.Reverse(b)
	copy(dst, b)
}

func coordinate(b []byte) *big.Int {
	return octets.Number(b[:72])
}

func parsePublicKey(b []byte) (*ecdsa.PublicKey, error) {
	if binary.LittleEndian.Uint32(b) != curveP384 {
		return nil, errors.New("the key is not on the curve P-384")
	}
	point := make([]byte, 1+2*48)
	point[0] = 4 // uncompressed (SEC 1, 2.3.3)
	for i, off := range []int{4, 76} {
		n := coordinate(b[off:])
		if n.BitLen() > 384 {
			return nil, errors.New("the key's coordinates are longer than 384 bits")
		}
		n.FillBytes(point[1+48*i : 1+48*(i+1)])
	}
	return ecdsa.ParseUncompressedPublicKey(elliptic.P384(), point)
}

func publicKeyOf(k crypto.Signer) ([publicKeySize]byte, error) {
	p, ok := k.Public().(*ecdsa.PublicKey)
	if !ok {
		return [publicKeySize]byte{}, errIDKey
	}
	return publicKey(p)
}

func signP384(random io.Reader, dst []byte, k crypto.Signer, message []byte) error {
	sum := sha512.Sum384(message)
	der, err := k.Sign(random, sum[:], crypto.SHA384)
	if err != nil {
		return err
	}
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &rs); err != nil {
		return err
	}
	putCoordinate(dst, rs.R)
	putCoordinate(dst[72:], rs.S)
	return nil
}

func verifyP384(k *ecdsa.PublicKey, signature, message []byte) bool {
	sum := sha512.Sum384(message)
	return ecdsa.Verify(k, sum[:], coordinate(signature), coordinate(signature[72:]))
}

// SignIDBlock makes the ID authentication structure, 4096 bytes: the block
// signed with the ID key and, if there is an author (not nil), the ID key signed
// with the author's. Keys are on P-384, in memory or elsewhere.
func SignIDBlock(random io.Reader, id IDBlock, idKey, author crypto.Signer) ([]byte, error) {
	auth := make([]byte, IDAuthSize)
	le := binary.LittleEndian
	le.PutUint32(auth, algoECDSAP384SHA384)
	key, err := publicKeyOf(idKey)
	if err != nil {
		return nil, err
	}
	copy(auth[authIDKey:], key[:])
	if err := signP384(random, auth[authBlockSignature:], idKey, id.Bytes()); err != nil {
		return nil, err
	}
	if author == nil {
		return auth, nil
	}
	le.PutUint32(auth[4:], algoECDSAP384SHA384)
	authorKey, err := publicKeyOf(author)
	if err != nil {
		return nil, err
	}
	copy(auth[authAuthorKey:], authorKey[:])
	return auth, signP384(random, auth[authKeySignature:], author, key[:])
}

// Errors of VerifyIDAuth.
var (
	ErrIDAuthFormat    = errors.New("id auth: malformed")
	ErrIDAuthSignature = errors.New("id auth: bad signature")
)

// IDKeys are the keys in an ID authentication structure whose signatures hold.
type IDKeys struct {
	ID     *ecdsa.PublicKey
	Author *ecdsa.PublicKey // nil without an author
}

// VerifyIDAuth checks an ID authentication structure against its block, as the
// firmware does at SNP_LAUNCH_FINISH. withAuthor is AUTH_KEY_EN.
func VerifyIDAuth(block IDBlock, auth []byte, withAuthor bool) (IDKeys, error) {
	var keys IDKeys
	if len(auth) != IDAuthSize {
		return keys, fmt.Errorf("%w: %d bytes, must be %d", ErrIDAuthFormat, len(auth), IDAuthSize)
	}
	le := binary.LittleEndian
	if algo := le.Uint32(auth); algo != algoECDSAP384SHA384 {
		return keys, fmt.Errorf("%w: ID key algorithm %d", ErrIDAuthFormat, algo)
	}
	idKey := auth[authIDKey : authIDKey+publicKeySize]
	var err error
	if keys.ID, err = parsePublicKey(idKey); err != nil {
		return keys, fmt.Errorf("%w: ID key: %w", ErrIDAuthFormat, err)
	}
	if !verifyP384(keys.ID, auth[authBlockSignature:], block.Bytes()) {
		return keys, fmt.Errorf("%w: the ID key did not sign this block", ErrIDAuthSignature)
	}
	if !withAuthor {
		return keys, nil
	}
	if algo := le.Uint32(auth[4:]); algo != algoECDSAP384SHA384 {
		return keys, fmt.Errorf("%w: author key algorithm %d", ErrIDAuthFormat, algo)
	}
	if keys.Author, err = parsePublicKey(auth[authAuthorKey : authAuthorKey+publicKeySize]); err != nil {
		return keys, fmt.Errorf("%w: author key: %w", ErrIDAuthFormat, err)
	}
	if !verifyP384(keys.Author, auth[authKeySignature:], idKey) {
		return keys, fmt.Errorf("%w: the author key did not sign the ID key", ErrIDAuthSignature)
	}
	return keys, nil
}

// HasAuthor reports whether an ID authentication structure carries an author key.
func HasAuthor(auth []byte) bool {
	return len(auth) == IDAuthSize &&
		!bytes.Equal(auth[authAuthorKey:authAuthorKey+publicKeySize], make([]byte, publicKeySize))
}
