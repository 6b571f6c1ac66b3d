package seal

import (
	"crypto/hmac"
	"errors"

	"github.com/google/go-tpm/tpm2"

	"github.com/vmlatch/vmlatch/firmware/tpm"
)

// Parent is a TPM's storage root key.
type Parent struct {
	c      *tpm.Conn
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	public *tpm2.TPMTPublic
	flush  bool
}

// ErrOtherTPM means that something was made for another TPM, or for this one before it was cleared.
var ErrOtherTPM = errors.New("another storage root key")

// OpenParent finds the storage root key that is kept; a TPM without one makes it, always the same.
func OpenParent(c *tpm.Conn) (*Parent, error) {
	p, err := openKept(c)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return OpenPrimary(c)
	}
	return p, tpm.Explain("find the TPM's storage root key", err)
}

// OpenPrimary makes the storage root key anew, whether one is kept or not.
func OpenPrimary(c *tpm.Conn) (*Parent, error) {
	p := &Parent{c: c}
	err := p.make(tpm.SRKTemplate())
	return p, tpm.Explain("make the TPM's storage root key", err)
}

// openKept opens the storage root key that is kept.
func openKept(c *tpm.Conn) (*Parent, error) {
	r, err := tpm2.ReadPublic{ObjectHandle: tpm.HandleSRK}.Execute(c)
	if err != nil {
		return nil, err
	}
	p := &Parent{c: c, handle: tpm.HandleSRK}
	return p, p.take(&r.OutPublic)
}

// openNamed opens the storage root key with a name: the one that is kept, or the one that a TPM
// makes, which was the only one before another was kept.
func openNamed(c *tpm.Conn, what string, name []byte) (*Parent, error) {
	for _, open := range []func(*tpm.Conn) (*Parent, error){openKept, OpenPrimary} {
		p, err := open(c)
		switch {
		case errors.Is(err, tpm2.TPMRCHandle):
		case err != nil:
			return nil, tpm.Explain("find the TPM's storage root key", err)
		case hmac.Equal(p.name.Buffer, name):
			return p, nil
		default:
			p.Close()
		}
	}
	return nil, &tpm.Error{
		Doing: "unseal " + what, Cause: "this was sealed to another TPM, or to this one before it was cleared",
		Fix: "seal it again, to this TPM's present key; until then another key must do", Err: ErrOtherTPM,
	}
}

// make makes a primary key of the owner's hierarchy.
func (p *Parent) make(template tpm2.TPMTPublic) error {
	r, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(template)}.Execute(p.c)
	if err != nil {
		return err
	}
	p.handle, p.flush = r.ObjectHandle, true
	return p.take(&r.OutPublic)
}

// take takes the key's public part. Its name is worked out from it: salts are encrypted to what is
// named, whatever lies between here and the TPM.
func (p *Parent) take(b *tpm2.TPM2BPublic) error {
	var err error
	if p.public, err = b.Contents(); err != nil {
		return err
	}
	name, err := tpm2.ObjectName(p.public)
	if err != nil {
		return err
	}
	p.name = *name
	return nil
}

// Public is the key's public part, to which everyone can seal.
func (p *Parent) Public() *tpm2.TPMTPublic { return p.public }

// Close gives back what the TPM holds for it.
func (p *Parent) Close() {
	if p.flush {
		_, _ = tpm2.FlushContext{FlushHandle: p.handle}.Execute(p.c)
	}
}

// Kept is the handle by which the key is found again: its own, or that of its hierarchy.
func (p *Parent) Kept() tpm2.TPMHandle {
	if p.flush {
		return tpm2.TPMRHOwner
	}
	return p.handle
}

// Auth is the key as commands name it.
func (p *Parent) Auth() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: p.handle, Name: p.name, Auth: tpm2.PasswordAuth(nil)}
}

// unseal loads an object and asks for its secret, by a policy, or without one if it is nil. The
// answer is encrypted on its way, to a key that only this storage root key gives.
func (p *Parent) unseal(
	what string, public *tpm2.TPMTPublic, private tpm2.TPM2BPrivate, policy func(*tpm.Conn, tpm2.TPMISHPolicy) error,
) ([]byte, error) {
	loaded, err := tpm2.Load{
		ParentHandle: p.Auth(), InPrivate: private, InPublic: tpm2.New2B(*public),
	}.Execute(p.c)
	if err != nil {
		return nil, tpm.Explain("unseal "+what, err)
	}
	defer func() { _, _ = tpm2.FlushContext{FlushHandle: loaded.ObjectHandle}.Execute(p.c) }()
	start := tpm2.PolicySession
	if policy == nil {
		start = tpm2.HMACSession
	}
	session, end, err := start(p.c, tpm2.TPMAlgSHA256, 16,
		tpm2.Salted(p.handle, *p.public), tpm2.AESEncryption(128, tpm2.EncryptOut))
	if err != nil {
		return nil, tpm.Explain("unseal "+what, err)
	}
	defer func() { _ = end() }()
	if policy != nil {
		if err := policy(p.c, session.Handle()); err != nil {
			return nil, tpm.Explain("unseal "+what, err)
		}
	}
	r, err := tpm2.Unseal{
		ItemHandle: tpm2.AuthHandle{Handle: loaded.ObjectHandle, Name: loaded.Name, Auth: session},
	}.Execute(p.c)
	if err != nil {
		return nil, tpm.Explain("unseal "+what, err)
	}
	return r.OutData.Buffer, nil
}
