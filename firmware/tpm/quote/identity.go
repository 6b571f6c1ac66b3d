package quote

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/vmlatch/vmlatch/firmware/tpm"
	"github.com/vmlatch/vmlatch/firmware/tpm/seal"
)

// Handles (TCG EK Credential Profile, section 2.2.1.4; of the AK, of the owner's range).
const (
	handleEK tpm2.TPMHandle = 0x81010016 // P-256
	certEK   tpm2.TPMHandle = 0x01c0000a
	handleAK tpm2.TPMHandle = 0x8100ac01
)

// Errors.
var (
	ErrFormat = errors.New("not of latchguest")
	ErrKey    = errors.New("the TPM's key")
)

// SchemaIdentity is the schema of identities.
const SchemaIdentity = "latchkey.tpm-identity/1"

// maxFile bounds what is parsed, in bytes.
const maxFile = 4 << 20

// Identity is a TPM's keys.
type Identity struct {
	Schema      string `json:"schema"`
	Trust       string `json:"trust"` // always "host"
	EK          []byte `json:"ek"`    // TPMT_PUBLIC
	Certificate []byte `json:"ek-certificate,omitempty"`
	AK          []byte `json:"ak"` // TPMT_PUBLIC
}

// Read reads a TPM's keys. The attestation key is made if there is none, and stays.
func Read(c *tpm.Conn) (*Identity, error) {
	id := &Identity{Schema: SchemaIdentity, Trust: "host"}
	ek, err := openEK(c)
	if err != nil {
		return nil, err
	}
	ek.close(c)
	id.EK = tpm2.Marshal(*ek.public)
	if id.Certificate, err = readIndex(c, certEK); err != nil && !errors.Is(err, tpm2.TPMRCHandle) {
		return nil, err
	}
	ak, err := openAK(c)
	if err != nil {
		return nil, err
	}
	id.AK = tpm2.Marshal(*ak.public)
	return id, nil
}

// key is one that a TPM holds.
type key struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	public *tpm2.TPMTPublic
	flush  bool
}

func (k *key) close(c *tpm.Conn) {
	if k.flush {
		_, _ = tpm2.FlushContext{FlushHandle: k.handle}.Execute(c)
	}
}

func readKey(c *tpm.Conn, handle tpm2.TPMHandle) (*key, error) {
	r, err := tpm2.ReadPublic{ObjectHandle: handle}.Execute(c)
	if err != nil {
		return nil, err
	}
	k := &key{handle: handle, name: r.Name}
	k.public, err = r.OutPublic.Contents()
	return k, err
}

// openEK finds the endorsement key that is kept, or makes it, always the same.
func openEK(c *tpm.Conn) (*key, error) {
	k, err := readKey(c, handleEK)
	if errors.Is(err, tpm2.TPMRCHandle) {
		var r *tpm2.CreatePrimaryResponse
		r, err = tpm2.CreatePrimary{
			PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(tpm2.ECCEKTemplate),
		}.Execute(c)
		if err == nil {
			k = &key{handle: r.ObjectHandle, name: r.Name, flush: true}
			k.public, err = r.OutPublic.Contents()
		}
	}
	return k, tpm.Explain("find the TPM's endorsement key", err)
}

// templateAK signs what the TPM itself says, and nothing else.
var templateAK = tpm2.TPMTPublic{
	Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
	ObjectAttributes: tpm2.TPMAObject{
		FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true,
		Restricted: true, SignEncrypt: true,
	},
	Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		Scheme: tpm2.TPMTECCScheme{
			Scheme:  tpm2.TPMAlgECDSA,
			Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
		},
		CurveID: tpm2.TPMECCNistP256,
	}),
}

// openAK finds the attestation key, or makes it.
func openAK(c *tpm.Conn) (*key, error) {
	k, err := readKey(c, handleAK)
	if errors.Is(err, tpm2.TPMRCHandle) {
		if err = makeAK(c); err == nil {
			k, err = readKey(c, handleAK)
		}
	}
	if err != nil {
		return nil, tpm.Explain("find the attestation key", err)
	}
	return k, CheckAK(k.public)
}

func makeAK(c *tpm.Conn) error {
	parent, err := seal.OpenParent(c)
	if err != nil {
		return err
	}
	defer parent.Close()
	r, err := tpm2.Create{ParentHandle: parent.Auth(), InPublic: tpm2.New2B(templateAK)}.Execute(c)
	if err != nil {
		return err
	}
	loaded, err := tpm2.Load{
		ParentHandle: parent.Auth(), InPrivate: r.OutPrivate, InPublic: r.OutPublic,
	}.Execute(c)
	if err != nil {
		return err
	}
	_, err = tpm2.EvictControl{
		Auth: tpm2.TPMRHOwner, ObjectHandle: &tpm2.NamedHandle{Handle: loaded.ObjectHandle, Name: loaded.Name},
		PersistentHandle: handleAK,
	}.Execute(c)
	_, flush := tpm2.FlushContext{FlushHandle: loaded.ObjectHandle}.Execute(c)
	return errors.Join(err, flush)
}

// CheckAK is an error unless a key signs only what its TPM itself says, and cannot leave it.
func CheckAK(p *tpm2.TPMTPublic) error {
	a := p.ObjectAttributes
	if !a.Restricted || !a.SignEncrypt || a.Decrypt || !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin {
		return fmt.Errorf(
			"%w: it is not an attestation key: it could sign what is not the TPM's word, or leave it",
			ErrKey,
		)
	}
	return nil
}

// readIndex reads an index of the TPM's memory.
func readIndex(c *tpm.Conn, index tpm2.TPMHandle) ([]byte, error) {
	const most, part = 4 << 10, 512
	public, err := tpm2.NVReadPublic{NVIndex: index}.Execute(c)
	if err != nil {
		return nil, err
	}
	what, err := public.NVPublic.Contents()
	if err != nil {
		return nil, err
	}
	if what.DataSize > most {
		return nil, fmt.Errorf("%w: its certificate has %d bytes", ErrKey, what.DataSize)
	}
	var all []byte
	name := tpm2.NamedHandle{Handle: index, Name: public.NVName}
	for len(all) < int(what.DataSize) {
		r, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: index, Name: name.Name, Auth: tpm2.PasswordAuth(nil)}, NVIndex: name,
			Size: min(part, what.DataSize-uint16(len(all))), Offset: uint16(len(all)),
		}.Execute(c)
		if err != nil {
			return nil, tpm.Explain("read the certificate of the endorsement key", err)
		}
		if len(r.Data.Buffer) == 0 {
			return nil, &tpm.Error{
				Doing: "read the TPM's memory",
				Cause: "the TPM's answer is odd",
				Err:   tpm.ErrAnswer,
			}
		}
		all = append(all, r.Data.Buffer...)
	}
	return all, nil
}

// ParseIdentity reads an identity.
func ParseIdentity(b []byte) (*Identity, error) {
	id := &Identity{}
	err := parse(b, id, &id.Schema, SchemaIdentity)
	return id, err
}

// parse reads a file, which must be of a schema.
func parse(b []byte, to any, schema *string, want string) error {
	if len(b) > maxFile {
		return fmt.Errorf("%w: %d bytes", ErrFormat, len(b))
	}
	if err := json.Unmarshal(b, to); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if *schema != want {
		return fmt.Errorf("%w: it is not of the schema %q", ErrFormat, want)
	}
	return nil
}

// Public reads a TPMT_PUBLIC.
func Public(b []byte) (*tpm2.TPMTPublic, error) {
	p, err := tpm2.Unmarshal[tpm2.TPMTPublic](b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return p, nil
}
