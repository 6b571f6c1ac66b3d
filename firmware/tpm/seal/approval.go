package seal

import (
	"bytes"
	"cmp"
	"crypto"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"github.com/vmlatch/vmlatch/firmware/tpm"
)

// Approval is an owner's word that a boot may have what is sealed to the owner's key: for one name,
// values of registers, and until the TPM's counter is beyond its version.
type Approval struct {
	Type      string   `json:"type"`
	Keyslots  []string `json:"keyslots"` // always none
	Name      string   `json:"name"`
	Version   uint64   `json:"version"`
	Bank      string   `json:"bank"`
	PCRs      Values   `json:"pcrs"`
	Approver  []byte   `json:"approver"`  // TPMT_PUBLIC
	Signature []byte   `json:"signature"` // TPMT_SIGNATURE
}

// byApproval wants what a key approves under a name.
func byApproval(key crypto.PublicKey, name string) (step, *tpm2.TPMTPublic, error) {
	public, err := approver(key)
	if err != nil {
		return nil, nil, err
	}
	id, err := tpm2.ObjectName(public)
	if err != nil {
		return nil, nil, err
	}
	return &tpm2.PolicyAuthorize{KeySign: *id, PolicyRef: tpm2.TPM2BDigest{Buffer: reference(name)}}, public, nil
}

// MaxVersion is the greatest version of an approval.
const MaxVersion = 10_000

// Approve signs that a boot may have what is sealed to a key's approvals.
func Approve(
	rand io.Reader, key crypto.Signer, name string, version uint64, s tpm.Selection, values map[int][]byte,
) (*Approval, error) {
	switch {
	case name == "":
		return nil, fmt.Errorf("%w: it has no name", ErrPolicy)
	case version == 0 || version > MaxVersion:
		return nil, fmt.Errorf(
			"%w: its version must be 1 to %d: the TPM counts up to it one by one",
			ErrPolicy,
			MaxVersion,
		)
	}
	public, err := approver(key.Public())
	if err != nil {
		return nil, err
	}
	digest, err := approvedPolicy(version, s, values)
	if err != nil {
		return nil, err
	}
	der, err := key.Sign(rand, signed(digest, name), crypto.SHA256)
	if err != nil {
		return nil, err
	}
	signature, err := signatureOf(der)
	if err != nil {
		return nil, err
	}
	return &Approval{
		Type: TypeApproval, Keyslots: []string{}, Name: name, Version: version, Bank: s.Bank.String(),
		PCRs:     hexes(s, values),
		Approver: tpm2.Marshal(*public), Signature: signature,
	}, nil
}

func approvedPolicy(version uint64, s tpm.Selection, values map[int][]byte) ([]byte, error) {
	boot, err := registers(s, values)
	if err != nil {
		return nil, err
	}
	count, err := notEnded(version)
	if err != nil {
		return nil, err
	}
	return digestOf(boot, count)
}

// signed is what an approval signs (part 3, section 23.16).
func signed(policy []byte, name string) []byte {
	h := crypto.SHA256.New()
	h.Write(policy)
	h.Write(reference(name))
	return h.Sum(nil)
}

// signatureOf brings an ECDSA signature into a TPM's form: numbers as long as the curve's.
func signatureOf(der []byte) ([]byte, error) {
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &rs); err != nil {
		return nil, err
	}
	return tpm2.Marshal(tpm2.TPMTSignature{
		SigAlg: tpm2.TPMAlgECDSA,
		Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash:       tpm2.TPMAlgSHA256,
			SignatureR: tpm2.TPM2BECCParameter{Buffer: rs.R.FillBytes(make([]byte, 32))},
			SignatureS: tpm2.TPM2BECCParameter{Buffer: rs.S.FillBytes(make([]byte, 32))},
		}),
	}), nil
}

// ParseApproval reads what Approve made.
func ParseApproval(b []byte) (*Approval, error) {
	a := &Approval{}
	if err := parse(b, a); err != nil {
		return nil, err
	}
	if a.Type != TypeApproval || a.Name == "" || a.Version == 0 {
		return nil, fmt.Errorf("%w: it is of type %q, or incomplete", ErrFormat, a.Type)
	}
	return a, nil
}

// approved picks the approval for this boot: of those that fit, one that is of use longest.
func (s *Sealed) approved(c *tpm.Conn, approvals []*Approval) (func(*tpm.Conn, tpm2.TPMISHPolicy) error, error) {
	var mine []*Approval
	var others []string
	for _, a := range approvals {
		switch {
		case a.Name != s.Name:
			others = append(others, fmt.Sprintf("one is for %q", a.Name))
		case !bytes.Equal(a.Approver, s.Approver):
			others = append(others, "one is by another key")
		default:
			mine = append(mine, a)
		}
	}
	if len(mine) == 0 && others != nil {
		return nil, &tpm.Error{
			Doing: "unseal " + s.Name, Cause: "no approval fits: " + strings.Join(others, ", "),
			Err: tpm2.TPMRCPolicyFail,
			Fix: "it needs one for its name, by the key that it was sealed to (latchkey tpm seal --approver)",
		}
	}
	if len(mine) == 0 {
		return nil, &tpm.Error{
			Doing: "unseal " + s.Name, Cause: "no boot is approved", Err: tpm2.TPMRCPolicyFail,
			Fix: "its owner approves one (latchkey tpm approve), and the disk must carry that: cryptsetup token import",
		}
	}
	slices.SortStableFunc(mine, func(a, b *Approval) int { return cmp.Compare(b.Version, a.Version) })
	var last error
	for _, a := range mine {
		selection, want, err := a.PCRs.Registers(a.Bank)
		if err == nil {
			err = compare(c, s.Name, selection, want)
		}
		if err == nil {
			return a.run(selection), nil
		}
		if last == nil { // the newest says why
			last = err
		}
	}
	if len(mine) == 1 {
		return nil, last
	}
	return nil, &tpm.Error{
		Doing: "unseal " + s.Name, Cause: fmt.Sprintf("none of %d approvals is for this boot", len(mine)),
		Err: fmt.Errorf("version %d: %w", mine[0].Version, last),
		Fix: "its owner approves this kernel, initrd and command line: latchkey tpm approve",
	}
}

// run is the approval's part of a policy session.
func (a *Approval) run(selection tpm.Selection) func(*tpm.Conn, tpm2.TPMISHPolicy) error {
	return func(c *tpm.Conn, session tpm2.TPMISHPolicy) error {
		if _, err := (tpm2.PolicyPCR{PolicySession: session, Pcrs: selection.List()}).Execute(c); err != nil {
			return err
		}
		count, err := notEnded(a.Version)
		if err != nil {
			return err
		}
		count.PolicySession = session
		switch _, err := count.Execute(c); {
		case errors.Is(err, tpm2.TPMRCPolicy):
			return &tpm.Error{
				Doing: "unseal " + a.Name, Cause: fmt.Sprintf("the approval of version %d was ended", a.Version),
				Err: err,
				Fix: "a newer one was in use on this machine: boot the newer kernel, or have this one approved again",
			}
		case errors.Is(err, tpm2.TPMRCHandle):
			return noCounter("unseal "+a.Name, err)
		case err != nil:
			return err
		}
		digest, err := tpm2.PolicyGetDigest{PolicySession: session}.Execute(c)
		if err != nil {
			return err
		}
		return a.authorize(c, session, digest.PolicyDigest)
	}
}

// authorize shows the TPM the owner's signature.
func (a *Approval) authorize(c *tpm.Conn, session tpm2.TPMISHPolicy, approved tpm2.TPM2BDigest) error {
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](a.Approver)
	if err != nil {
		return fmt.Errorf("%w: its key: %w", ErrFormat, err)
	}
	signature, err := tpm2.Unmarshal[tpm2.TPMTSignature](a.Signature)
	if err != nil {
		return fmt.Errorf("%w: its signature: %w", ErrFormat, err)
	}
	key, err := tpm2.LoadExternal{InPublic: tpm2.New2B(*public), Hierarchy: tpm2.TPMRHOwner}.Execute(c)
	if err != nil {
		return err
	}
	defer func() { _, _ = tpm2.FlushContext{FlushHandle: key.ObjectHandle}.Execute(c) }()
	ticket, err := tpm2.VerifySignature{
		KeyHandle: key.ObjectHandle, Digest: tpm2.TPM2BDigest{Buffer: signed(approved.Buffer, a.Name)},
		Signature: *signature,
	}.Execute(c)
	if err != nil {
		return err
	}
	_, err = tpm2.PolicyAuthorize{
		PolicySession: session, ApprovedPolicy: approved, PolicyRef: tpm2.TPM2BDigest{Buffer: reference(a.Name)},
		KeySign: key.Name, CheckTicket: ticket.Validation,
	}.Execute(c)
	return err
}

func noCounter(doing string, err error) error {
	return &tpm.Error{
		Doing: doing, Cause: "this TPM has no counter for approvals", Err: err,
		Fix: "vmlatch makes it with each TPM of its VMs; for other TPMs seal to registers (--pcrs)",
	}
}

// EndBelow ends approvals of versions below one: the counter becomes the version. It cannot be
// undone. It returns how far the counter went.
func EndBelow(c *tpm.Conn, version uint64) (uint64, error) {
	now, err := Count(c)
	if err != nil {
		return 0, err
	}
	if version > MaxVersion {
		return now, fmt.Errorf("%w: no approval has a version beyond %d", ErrPolicy, MaxVersion)
	}
	index, err := counter()
	if err != nil {
		return now, err
	}
	for ; now < version; now++ {
		_, err := tpm2.NVIncrement{
			AuthHandle: tpm2.AuthHandle{Handle: index.Handle, Name: index.Name, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    index,
		}.Execute(c)
		if err != nil {
			return now, tpm.Explain("end approvals", err)
		}
	}
	return now, nil
}

// Count is the counter of approvals: those of lower versions do not count.
func Count(c *tpm.Conn) (uint64, error) {
	index, err := counter()
	if err != nil {
		return 0, err
	}
	r, err := tpm2.NVRead{
		AuthHandle: tpm2.AuthHandle{Handle: index.Handle, Name: index.Name, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    index, Size: 8,
	}.Execute(c)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return 0, noCounter("read the counter of approvals", err)
	}
	if err != nil {
		return 0, tpm.Explain("read the counter of approvals", err)
	}
	if len(r.Data.Buffer) != 8 {
		return 0, &tpm.Error{
			Doing: "read the counter of approvals",
			Cause: "the TPM's answer is odd",
			Err:   tpm.ErrAnswer,
		}
	}
	return new(big.Int).SetBytes(r.Data.Buffer).Uint64(), nil
}
