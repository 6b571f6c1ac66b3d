package seal

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/tpm"
)

// TypeEnrolled is the type of tokens of systemd-cryptenroll (systemd, docs/TPM2_PCR_MEASUREMENTS.md
// and src/shared/tpm2-util.c).
const TypeEnrolled = "systemd-tpm2"

// Enrolled is a token of systemd-cryptenroll whose policy is of registers alone.
type Enrolled struct {
	Type    string `json:"type"`
	Blob    []byte `json:"tpm2-blob"` // TPM2B_PRIVATE, TPM2B_PUBLIC
	PCRs    []int  `json:"tpm2-pcrs"`
	Bank    string `json:"tpm2-pcr-bank"`
	Primary string `json:"tpm2-primary-alg"` // ecc, rsa
	Policy  string `json:"tpm2-policy-hash"` // in hex
	PIN     bool   `json:"tpm2-pin"`
	Keys    []int  `json:"tpm2_pubkey_pcrs"` // registers that a key signs
	SRK     []byte `json:"tpm2_srk"`         // of systemd 255 and later
	PCRLock bool   `json:"tpm2_pcrlock"`
}

// ParseEnrolled reads a token of systemd-cryptenroll.
func ParseEnrolled(b []byte) (*Enrolled, error) {
	e := &Enrolled{}
	if err := parse(b, e); err != nil {
		return nil, err
	}
	if e.Type != TypeEnrolled || len(e.Blob) == 0 {
		return nil, fmt.Errorf("%w: it is of type %q, or incomplete", ErrFormat, e.Type)
	}
	for _, n := range e.PCRs {
		if n < 0 || n >= tpm.Registers {
			return nil, fmt.Errorf("%w: it names PCR %d", ErrFormat, n)
		}
	}
	return e, nil
}

// Unseal asks a TPM for the passphrase that systemd-cryptenroll gave a key slot.
func (e *Enrolled) Unseal(c *tpm.Conn) ([]byte, error) {
	const what = "unseal what systemd-cryptenroll sealed"
	for _, x := range []struct {
		has  bool
		what string
	}{
		{e.PIN, "a PIN"},
		{len(e.Keys) > 0, "signatures of registers (tpm2-public-key)"},
		{e.PCRLock, "systemd-pcrlock"},
		{len(e.PCRs) == 0, "no registers, so that any boot would get it"},
	} {
		if x.has {
			return nil, &tpm.Error{
				Doing: what, Cause: "it wants " + x.what, Err: errors.ErrUnsupported,
				Fix: "systemd-cryptsetup opens it, if the initrd has it; here: systemd-cryptenroll " +
					"--tpm2-pcrs=4+7+9+15 --tpm2-public-key=",
			}
		}
	}
	policy, err := hex.DecodeString(e.Policy)
	if err != nil {
		return nil, fmt.Errorf("%w: its policy: %w", ErrFormat, err)
	}
	bank, err := eventlog.BankNamed(e.Bank)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	selection := tpm.Selection{Bank: bank, PCRs: slices.Compact(slices.Sorted(slices.Values(e.PCRs)))}
	private, public, err := e.object()
	if err != nil {
		return nil, err
	}
	p, err := e.parent(c)
	if err != nil {
		return nil, tpm.Explain(what, err)
	}
	defer p.Close()
	if string(public.AuthPolicy.Buffer) != string(policy) {
		return nil, fmt.Errorf("%w: its policy is not that of its key", ErrFormat)
	}
	secret, err := p.unseal(TypeEnrolled, public, *private, func(c *tpm.Conn, session tpm2.TPMISHPolicy) error {
		_, err := tpm2.PolicyPCR{PolicySession: session, Pcrs: selection.List()}.Execute(c)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	return base64.StdEncoding.AppendEncode(nil, secret), nil
}

// object is the sealed object: its private part, then its public one.
func (e *Enrolled) object() (*tpm2.TPM2BPrivate, *tpm2.TPMTPublic, error) {
	private, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](e.Blob)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	rest := e.Blob[min(len(e.Blob), 2+len(private.Buffer)):]
	outer, err := tpm2.Unmarshal[tpm2.TPM2BPublic](rest)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	public, err := outer.Contents()
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return private, public, nil
}

// parent is the key to which it was sealed: since systemd 255 the one that is kept, before one that
// is made each time.
func (e *Enrolled) parent(c *tpm.Conn) (*Parent, error) {
	if len(e.SRK) > 0 {
		return OpenParent(c)
	}
	p := &Parent{c: c}
	template := tpm.SRKTemplate()
	if e.Primary == "rsa" {
		template = tpm2.RSASRKTemplate
		template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
	}
	template.ObjectAttributes.NoDA = false
	return p, p.make(template)
}
