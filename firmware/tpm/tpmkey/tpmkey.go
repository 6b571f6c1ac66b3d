// Package tpmkey has keys that sign inside a TPM and never leave it. Their files are those of
// OpenSSL's TPM 2.0 provider: whoever has a file can use it only with the TPM that made it.
//
// Sources: TPM 2.0 Key Files (draft-bottomley-tpm2-keys), section 3; "part 2" and "part 3" are
// those of the TCG TPM 2.0 Library, revision 1.59.
package tpmkey

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/google/go-tpm/tpm2"

	"github.com/vmlatch/vmlatch/firmware/tpm"
	"github.com/vmlatch/vmlatch/firmware/tpm/seal"
)

// ErrKey is wrapped by errors about keys and files that cannot be used.
var ErrKey = errors.New("key in a TPM")

// pemType is that of PEM files (section 3.1).
const pemType = "TSS2 PRIVATE KEY"

var oidLoadable = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 3}

// file is the contents of a file (section 3.1, TPMKey).
type file struct {
	Type      asn1.ObjectIdentifier
	EmptyAuth bool `asn1:"optional,explicit,tag:0"`
	Parent    int64
	Public    []byte // TPM2B_PUBLIC
	Private   []byte // TPM2B_PRIVATE
}

// curves are those that keys of owners are on.
var curves = map[elliptic.Curve]struct {
	id   tpm2.TPMECCCurve
	hash tpm2.TPMIAlgHash
}{
	elliptic.P256(): {tpm2.TPMECCNistP256, tpm2.TPMAlgSHA256},
	elliptic.P384(): {tpm2.TPMECCNistP384, tpm2.TPMAlgSHA384},
}

// Key is one that a TPM holds. It is a crypto.Signer.
type Key struct {
	c      *tpm.Conn
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	public *ecdsa.PublicKey
	flush  bool
}

// parameters describe a key on a curve, which signs digests by its curve's hash.
func parameters(curve elliptic.Curve) (*tpm2.TPMSECCParms, error) {
	x, ok := curves[curve]
	if !ok {
		return nil, fmt.Errorf("%w: must be on P-256 or P-384", ErrKey)
	}
	return &tpm2.TPMSECCParms{
		Scheme: tpm2.TPMTECCScheme{
			Scheme:  tpm2.TPMAlgECDSA,
			Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: x.hash}),
		},
		CurveID: x.id,
	}, nil
}

// Probe is an error if a TPM cannot have keys on a curve: many have P-256 alone.
func Probe(c *tpm.Conn, curve elliptic.Curve) error {
	p, err := parameters(curve)
	if err != nil {
		return err
	}
	_, err = tpm2.TestParms{Parameters: tpm2.TPMTPublicParms{
		Type: tpm2.TPMAlgECC, Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, p),
	}}.Execute(c)
	if err != nil {
		err = tpm.Explain("make a key on "+curve.Params().Name, err)
		var e *tpm.Error
		if errors.As(err, &e) {
			e.Cause = "this TPM has no keys on " + curve.Params().Name
			e.Fix = "keep the key in a file, on a machine or a token that you trust; other TPMs, such as swtpm, have it"
		}
	}
	return err
}

// Make makes a key in a TPM, and the file by which only this TPM finds it again.
func Make(c *tpm.Conn, curve elliptic.Curve) ([]byte, error) {
	if err := Probe(c, curve); err != nil {
		return nil, err
	}
	p, err := parameters(curve)
	if err != nil {
		return nil, err
	}
	parent, err := seal.OpenParent(c)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	r, err := tpm2.Create{
		ParentHandle: parent.Auth(),
		InPublic: tpm2.New2B(tpm2.TPMTPublic{
			Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
			ObjectAttributes: tpm2.TPMAObject{
				FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true,
				SignEncrypt: true,
			},
			Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, p),
		}),
	}.Execute(c)
	if err != nil {
		return nil, tpm.Explain("make a key", err)
	}
	der, err := asn1.Marshal(file{
		Type: oidLoadable, EmptyAuth: true, Parent: int64(parent.Kept()), Public: tpm2.Marshal(r.OutPublic),
		Private: tpm2.Marshal(r.OutPrivate),
	})
	return pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}), err
}

// IsFile reports whether data are a key file of a TPM.
func IsFile(b []byte) bool {
	block, _ := pem.Decode(b)
	return block != nil && block.Type == pemType
}

// Load loads a key of a file into the TPM that made it.
func Load(c *tpm.Conn, b []byte) (*Key, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != pemType {
		return nil, fmt.Errorf("%w: not a file of the type %q", ErrKey, pemType)
	}
	var f file
	if rest, err := asn1.Unmarshal(block.Bytes, &f); err != nil || len(rest) > 0 {
		return nil, fmt.Errorf("%w: its file is damaged, or wants a password or a policy (%d bytes, %v)", ErrKey,
			len(block.Bytes), err)
	}
	switch {
	case !f.Type.Equal(oidLoadable):
		return nil, fmt.Errorf("%w: its file is of the type %v, must be loadable", ErrKey, f.Type)
	case !f.EmptyAuth:
		return nil, fmt.Errorf("%w: it wants a password, which is not supported", ErrKey)
	case f.Parent != int64(tpm2.TPMRHOwner) && f.Parent != int64(tpm.HandleSRK):
		return nil, fmt.Errorf("%w: its parent is %#x, must be the storage root key", ErrKey, f.Parent)
	}
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](f.Public)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	private, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](f.Private)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	open := seal.OpenParent
	if f.Parent == int64(tpm2.TPMRHOwner) {
		open = seal.OpenPrimary
	}
	parent, err := open(c)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	r, err := tpm2.Load{ParentHandle: parent.Auth(), InPrivate: *private, InPublic: *public}.Execute(c)
	if err != nil {
		return nil, tpm.Explain("load the key", err)
	}
	k := &Key{c: c, handle: r.ObjectHandle, name: r.Name, flush: true}
	if k.public, err = keyOf(public); err != nil {
		_ = k.Flush()
		return nil, err
	}
	return k, nil
}

// Kept is a key that a TPM keeps under a handle.
func Kept(c *tpm.Conn, handle uint32) (*Key, error) {
	r, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(handle)}.Execute(c)
	if err != nil {
		return nil, tpm.Explain(fmt.Sprintf("find the key %#x", handle), err)
	}
	k := &Key{c: c, handle: tpm2.TPMHandle(handle), name: r.Name}
	k.public, err = keyOf(&r.OutPublic)
	return k, err
}

// keyOf is the public key, which must sign what it is given.
func keyOf(b *tpm2.TPM2BPublic) (*ecdsa.PublicKey, error) {
	p, err := b.Contents()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	if a := p.ObjectAttributes; !a.SignEncrypt || a.Restricted {
		return nil, fmt.Errorf("%w: it cannot sign what others give it", ErrKey)
	}
	k, err := tpm2.Pub(*p)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	e, ok := k.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%w: it is %T, must be on P-256 or P-384", ErrKey, k)
	}
	return e, nil
}

// Flush gives back what the TPM holds for the key.
func (k *Key) Flush() error {
	if !k.flush {
		return nil
	}
	_, err := tpm2.FlushContext{FlushHandle: k.handle}.Execute(k.c)
	return err
}

// Public is an *ecdsa.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.public }

// Sign has the TPM sign a digest, and returns an ASN.1 signature. The randomness is the TPM's.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	hash := map[crypto.Hash]tpm2.TPMIAlgHash{crypto.SHA256: tpm2.TPMAlgSHA256, crypto.SHA384: tpm2.TPMAlgSHA384}
	alg, ok := hash[opts.HashFunc()]
	if !ok {
		return nil, fmt.Errorf("%w: it does not sign digests of %v", ErrKey, opts.HashFunc())
	}
	r, err := tpm2.Sign{
		KeyHandle: tpm2.AuthHandle{Handle: k.handle, Name: k.name, Auth: tpm2.PasswordAuth(nil)},
		Digest:    tpm2.TPM2BDigest{Buffer: digest},
		InScheme: tpm2.TPMTSigScheme{
			Scheme:  tpm2.TPMAlgECDSA,
			Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: alg}),
		},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	}.Execute(k.c)
	if err != nil {
		return nil, tpm.Explain("sign", err)
	}
	ecc, err := r.Signature.Signature.ECDSA()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(ecc.SignatureR.Buffer), new(big.Int).SetBytes(ecc.SignatureS.Buffer),
	})
}
