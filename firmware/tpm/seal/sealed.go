package seal

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/google/go-tpm/tpm2"

	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/tpm"
)

// Types of LUKS2 tokens.
const (
	TypeSealed   = "latchkey-tpm"
	TypeApproval = "latchkey-tpm-approval"
	TypeKept     = "latchkey-tpm-kept" // of owners, in their own TPM, whatever was booted
)

// MaxSecret is how long a secret may be, in bytes (part 2, section 11.1.14, MAX_SYM_DATA).
const MaxSecret = 128

// maxToken bounds what is read, in bytes.
const maxToken = 16 << 10

// ErrFormat is wrapped by errors about files that are not those of this package.
var ErrFormat = errors.New("not sealed by latchkey")

// Values are values of registers in hex, by their number.
type Values map[string]string

// Sealed is a secret that only one TPM gives, and only to a machine that booted as its policy says.
type Sealed struct {
	Type     string   `json:"type"`
	Keyslots []string `json:"keyslots"` // of the disk that the secret opens
	Name     string   `json:"name"`
	Bank     string   `json:"bank,omitempty"`
	PCRs     Values   `json:"pcrs,omitempty"`     // it is sealed to these
	Approver []byte   `json:"approver,omitempty"` // or to what this key approves: TPMT_PUBLIC
	SRK      []byte   `json:"srk"`                // the Name of the TPM's key
	Public   []byte   `json:"public"`             // TPMT_PUBLIC
	Private  []byte   `json:"private"`            // TPM2B_PRIVATE, encrypted to the key
	Seed     []byte   `json:"seed"`               // TPM2B_ENCRYPTED_SECRET
}

// Policy is what a secret is sealed to: values of registers, or what a key approves.
type Policy struct {
	Name      string // of the policy: approvals for other names do not count
	Selection tpm.Selection
	Values    map[int][]byte
	Approver  crypto.PublicKey // nil: the values
	// Kept is a secret of the TPM's own keeper: it is given after any boot.
	Kept bool
}

func (p *Policy) step() (s step, approver *tpm2.TPMTPublic, err error) {
	if p.Approver == nil {
		s, err = registers(p.Selection, p.Values)
		return s, nil, err
	}
	return byApproval(p.Approver, p.Name)
}

// Seal encrypts a secret to a TPM's storage root key. That can be done anywhere.
func Seal(rand io.Reader, srk *tpm2.TPMTPublic, secret []byte, p *Policy) (*Sealed, error) {
	if len(secret) == 0 || len(secret) > MaxSecret {
		return nil, fmt.Errorf("%w: the secret has %d bytes, must have 1 to %d", ErrPolicy, len(secret), MaxSecret)
	}
	if p.Name == "" {
		return nil, fmt.Errorf("%w: it has no name", ErrPolicy)
	}
	var digest []byte
	var approver *tpm2.TPMTPublic
	if !p.Kept {
		want, by, err := p.step()
		if err != nil {
			return nil, err
		}
		if digest, err = digestOf(want); err != nil {
			return nil, err
		}
		approver = by
	}
	seed := make([]byte, crypto.SHA256.Size())
	if _, err := io.ReadFull(rand, seed); err != nil {
		return nil, err
	}
	public, sensitive := object(seed, secret, digest)
	defer clear(sensitive)
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return nil, err
	}
	to, err := tpm2.ImportEncapsulationKey(srk)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	private, encrypted, err := tpm2.CreateDuplicate(rand, to, name.Buffer, sensitive)
	if err != nil {
		return nil, err
	}
	parent, err := tpm2.ObjectName(srk)
	if err != nil {
		return nil, err
	}
	s := &Sealed{
		Type: TypeSealed, Keyslots: []string{}, Name: p.Name, SRK: parent.Buffer,
		Public: tpm2.Marshal(*public), Private: private, Seed: encrypted,
	}
	switch {
	case p.Kept:
		s.Type = TypeKept
	case approver != nil:
		s.Approver = tpm2.Marshal(*approver)
	default:
		s.Bank, s.PCRs = p.Selection.Bank.String(), hexes(p.Selection, p.Values)
	}
	return s, nil
}

// object is a sealed data object (part 1, section 27.4): only its policy opens it, or without one
// whoever has the TPM. Wrong attempts do not count.
func object(seed, secret, policy []byte) (*tpm2.TPMTPublic, []byte) {
	h := crypto.SHA256.New()
	h.Write(seed)
	h.Write(secret)
	public := &tpm2.TPMTPublic{
		Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{NoDA: true, UserWithAuth: policy == nil},
		AuthPolicy:       tpm2.TPM2BDigest{Buffer: policy},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{
			Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgNull},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{Buffer: h.Sum(nil)}),
	}
	return public, tpm2.Marshal(tpm2.TPMTSensitive{
		SensitiveType: tpm2.TPMAlgKeyedHash, SeedValue: tpm2.TPM2BDigest{Buffer: seed},
		Sensitive: tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BSensitiveData{Buffer: secret}),
	})
}

func hexes(s tpm.Selection, values map[int][]byte) Values {
	v := Values{}
	for _, n := range s.PCRs {
		v[strconv.Itoa(n)] = hex.EncodeToString(values[n])
	}
	return v
}

// Registers are the registers and values of a token.
func (v Values) Registers(bank string) (s tpm.Selection, values map[int][]byte, err error) {
	if s.Bank, err = eventlog.BankNamed(bank); err != nil {
		return s, nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	text := ""
	values = map[int][]byte{}
	for key, value := range v {
		text += "," + key
		n, err := strconv.Atoi(key)
		if err == nil && strconv.Itoa(n) != key { // or one register could stand there twice, as 015 and 15
			err = strconv.ErrSyntax
		}
		b, err2 := hex.DecodeString(value)
		if err = errors.Join(err, err2); err != nil {
			return s, nil, fmt.Errorf("%w: PCR %q: %w", ErrFormat, key, err)
		}
		values[n] = b
	}
	if text == "" {
		return s, nil, fmt.Errorf("%w: it names no registers", ErrFormat)
	}
	if s, err = tpm.ParseSelection(s.Bank, text[1:]); err != nil {
		return s, nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return s, values, nil
}

// ParseKept reads what Seal made of a secret that is kept.
func ParseKept(b []byte) (*Sealed, error) {
	s := &Sealed{}
	if err := parse(b, s); err != nil {
		return nil, err
	}
	if s.Type != TypeKept || s.Approver != nil || s.PCRs != nil {
		return nil, fmt.Errorf("%w: it is of type %q, or has a policy", ErrFormat, s.Type)
	}
	return s, nil
}

// ParseSealed reads what Seal made.
func ParseSealed(b []byte) (*Sealed, error) {
	s := &Sealed{}
	if err := parse(b, s); err != nil {
		return nil, err
	}
	if s.Type != TypeSealed || s.Name == "" || (s.Approver == nil) == (s.PCRs == nil) {
		return nil, fmt.Errorf("%w: it is of type %q, or incomplete", ErrFormat, s.Type)
	}
	return s, nil
}

func parse(b []byte, to any) error {
	if len(b) > maxToken {
		return fmt.Errorf("%w: %d bytes", ErrFormat, len(b))
	}
	if err := json.Unmarshal(b, to); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return nil
}

// Unseal asks a TPM for the secret. Of approvals, which Sealed by a key needs, the first that fits
// this boot is used.
func (s *Sealed) Unseal(c *tpm.Conn, approvals []*Approval) ([]byte, error) {
	p, err := openNamed(c, s.Name, s.SRK)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](s.Public)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	var steps func(*tpm.Conn, tpm2.TPMISHPolicy) error
	if s.Type != TypeKept {
		if steps, err = s.steps(c, approvals); err != nil {
			return nil, err
		}
	}
	r, err := tpm2.Import{
		ParentHandle: p.Auth(), ObjectPublic: tpm2.New2B(*public),
		Duplicate: tpm2.TPM2BPrivate{Buffer: s.Private}, InSymSeed: tpm2.TPM2BEncryptedSecret{Buffer: s.Seed},
		Symmetric: tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull},
	}.Execute(c)
	if err != nil {
		return nil, tpm.Explain("unseal "+s.Name, err)
	}
	return p.unseal(s.Name, public, r.OutPrivate, steps)
}

// steps are the commands that a policy session runs.
func (s *Sealed) steps(c *tpm.Conn, approvals []*Approval) (func(*tpm.Conn, tpm2.TPMISHPolicy) error, error) {
	if s.Approver != nil {
		return s.approved(c, approvals)
	}
	selection, want, err := s.PCRs.Registers(s.Bank)
	if err != nil {
		return nil, err
	}
	if err := compare(c, s.Name, selection, want); err != nil {
		return nil, err
	}
	return func(c *tpm.Conn, session tpm2.TPMISHPolicy) error {
		_, err := tpm2.PolicyPCR{PolicySession: session, Pcrs: selection.List()}.Execute(c)
		return err
	}, nil
}

// compare says which registers differ. The TPM decides; this is for people.
func compare(c *tpm.Conn, name string, s tpm.Selection, want map[int][]byte) error {
	got, err := c.ReadPCRs(s)
	if err != nil {
		return err
	}
	for _, n := range s.PCRs {
		if !bytes.Equal(got[n], want[n]) {
			e := &tpm.Error{
				Doing: "unseal " + name,
				Cause: fmt.Sprintf("PCR %d is %x, and this is sealed to %x", n, got[n], want[n]),
				Fix:   "it holds " + Holds(n) + "; latchkey pcrs --log says what changed",
				Err:   tpm2.TPMRCPolicyFail,
			}
			if n == ClosingPCR {
				e.Cause, e.Fix = "this boot has unsealed already, and closed the TPM", "start the guest again"
			}
			return e
		}
	}
	return nil
}

// Holds says what a register holds.
func Holds(pcr int) string {
	switch pcr {
	case 0:
		return "the firmware"
	case 2, 3:
		return "option ROMs of devices"
	case 4:
		return "the kernel or loader that the firmware started"
	case 7:
		return "Secure Boot and its keys"
	case 9:
		return "the kernel's command line and the initrd"
	case 11:
		return "the unified kernel image, and how far the boot has come"
	case 12:
		return "additions to the command line"
	case 13:
		return "system extensions"
	}
	return "what was measured into it"
}
