package quote

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/vmlatch/vmlatch/firmware/tpm"
)

// Schemas of files.
const (
	SchemaCredential = "latchkey.tpm-credential/1"
	SchemaPending    = "latchkey.tpm-pending/1"
	SchemaAK         = "latchkey.tpm-ak/1"
)

// Credential is a challenge to a TPM: only the one with the endorsement key can answer it, and only
// if it holds the attestation key too (part 1, section 24).
type Credential struct {
	Schema string `json:"schema"`
	EK     []byte `json:"ek"`     // its Name
	Blob   []byte `json:"blob"`   // TPM2B_ID_OBJECT
	Secret []byte `json:"secret"` // TPM2B_ENCRYPTED_SECRET
}

// Pending is what the owner keeps meanwhile. It does not tell the answer.
type Pending struct {
	Schema string `json:"schema"`
	AK     []byte `json:"ak"`     // TPMT_PUBLIC
	EK     []byte `json:"ek"`     // its Name
	Answer string `json:"answer"` // SHA-256, in hex
}

// AK is an attestation key that is known to be in a TPM.
type AK struct {
	Schema string `json:"schema"`
	Trust  string `json:"trust"` // always "host"
	AK     []byte `json:"ak"`    // TPMT_PUBLIC
	EK     []byte `json:"ek"`    // the Name of the endorsement key of the same TPM
}

// Challenge makes a challenge to an identity's keys.
func Challenge(rand io.Reader, id *Identity) (*Credential, *Pending, error) {
	ek, err := Public(id.EK)
	if err != nil {
		return nil, nil, err
	}
	ak, err := Public(id.AK)
	if err != nil {
		return nil, nil, err
	}
	if err := CheckAK(ak); err != nil {
		return nil, nil, err
	}
	to, err := tpm2.ImportEncapsulationKey(ek)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	akName, err := tpm2.ObjectName(ak)
	if err != nil {
		return nil, nil, err
	}
	ekName, err := tpm2.ObjectName(ek)
	if err != nil {
		return nil, nil, err
	}
	answer := make([]byte, sha256.Size)
	if _, err := io.ReadFull(rand, answer); err != nil {
		return nil, nil, err
	}
	blob, secret, err := tpm2.CreateCredential(rand, to, akName.Buffer, answer)
	if err != nil {
		return nil, nil, err
	}
	sum := sha256.Sum256(answer)
	return &Credential{Schema: SchemaCredential, EK: ekName.Buffer, Blob: blob, Secret: secret},
		&Pending{Schema: SchemaPending, AK: id.AK, EK: ekName.Buffer, Answer: hex.EncodeToString(sum[:])}, nil
}

// ParseCredential reads a challenge.
func ParseCredential(b []byte) (*Credential, error) {
	c := &Credential{}
	err := parse(b, c, &c.Schema, SchemaCredential)
	return c, err
}

// Activate answers a challenge by the TPM, in hex.
func Activate(c *tpm.Conn, x *Credential) (string, error) {
	ek, err := openEK(c)
	if err != nil {
		return "", err
	}
	defer ek.close(c)
	if !bytes.Equal(ek.name.Buffer, x.EK) {
		return "", &tpm.Error{
			Doing: "answer the challenge", Cause: "it is for another TPM",
			Fix: "make one for this TPM: latchguest identity",
		}
	}
	ak, err := openAK(c)
	if err != nil {
		return "", err
	}
	endorsed := func(t transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
		_, err := tpm2.PolicySecret{
			AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
			PolicySession: session, NonceTPM: nonce,
		}.Execute(t)
		return err
	}
	r, err := tpm2.ActivateCredential{
		ActivateHandle: tpm2.AuthHandle{Handle: ak.handle, Name: ak.name, Auth: tpm2.PasswordAuth(nil)},
		KeyHandle: tpm2.AuthHandle{
			Handle: ek.handle, Name: ek.name, Auth: tpm2.Policy(tpm2.TPMAlgSHA256, 16, endorsed),
		},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: x.Blob}, Secret: tpm2.TPM2BEncryptedSecret{Buffer: x.Secret},
	}.Execute(c)
	if err != nil {
		return "", tpm.Explain("answer the challenge", err)
	}
	return hex.EncodeToString(r.CertInfo.Buffer), nil
}

// ParsePending reads what an owner has kept.
func ParsePending(b []byte) (*Pending, error) {
	p := &Pending{}
	err := parse(b, p, &p.Schema, SchemaPending)
	return p, err
}

// Check compares an answer with the challenge; the attestation key is known then.
func (p *Pending) Check(answer string) (*AK, error) {
	b, err := hex.DecodeString(answer)
	sum := sha256.Sum256(b)
	if err != nil || !hmac.Equal([]byte(hex.EncodeToString(sum[:])), []byte(p.Answer)) {
		return nil, fmt.Errorf(
			"%w: the answer is wrong: it is not in the TPM of this endorsement key",
			ErrKey,
		)
	}
	return &AK{Schema: SchemaAK, Trust: "host", AK: p.AK, EK: p.EK}, nil
}

// ParseAK reads an attestation key that is known.
func ParseAK(b []byte) (*AK, error) {
	a := &AK{}
	err := parse(b, a, &a.Schema, SchemaAK)
	return a, err
}
