package seal

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// ErrKey is wrapped by errors about public keys that cannot be used here.
var ErrKey = errors.New("key")

// ReadSRK reads the public part of a storage root key: TPM2B_PUBLIC, as tpm2_readpublic and vmlatch
// write it, or TPMT_PUBLIC.
func ReadSRK(b []byte) (*tpm2.TPMTPublic, error) {
	p, err := readPublic(b)
	if err != nil {
		return nil, fmt.Errorf("%w: not the public part of a TPM's key (TPM2B_PUBLIC): %w", ErrKey, err)
	}
	a := p.ObjectAttributes
	if !a.Restricted || !a.Decrypt || a.SignEncrypt || !a.FixedTPM || !a.FixedParent {
		return nil, fmt.Errorf("%w: not a storage key that stays in its TPM", ErrKey)
	}
	if _, err := tpm2.ImportEncapsulationKey(p); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return p, nil
}

func readPublic(b []byte) (*tpm2.TPMTPublic, error) {
	if outer, err := tpm2.Unmarshal[tpm2.TPM2BPublic](b); err == nil && len(tpm2.Marshal(*outer)) == len(b) {
		return outer.Contents()
	}
	p, err := tpm2.Unmarshal[tpm2.TPMTPublic](b)
	if err == nil && len(tpm2.Marshal(*p)) != len(b) {
		err = errors.New("it has bytes behind its end")
	}
	return p, err
}

// approver describes an owner's key for approvals to a TPM. All TPMs have P-256; and as other keys
// of owners are on other curves, no signature that was made for something else is an approval.
func approver(key crypto.PublicKey) (*tpm2.TPMTPublic, error) {
	k, ok := key.(*ecdsa.PublicKey)
	if !ok || k.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%w: approvals need a key on the curve P-256, of their own", ErrKey)
	}
	point, err := k.Bytes() // 04, then both coordinates
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return &tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{SignEncrypt: true, UserWithAuth: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{
				Scheme: tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(
					tpm2.TPMAlgECDSA,
					&tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256},
				),
			},
			CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
		}),
	}, nil
}
