package swtpm

import (
	"context"
	"crypto"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/tpm"
)

// Handles of what a manufactured TPM has (TCG TPM v2.0 Provisioning Guidance, section 7.8; TCG EK
// Credential Profile, section 2.2.1.4).
const (
	HandleEKRSA   tpm2.TPMHandle = 0x81010001
	HandleEKECC   tpm2.TPMHandle = 0x81010016 // P-256
	IndexCertRSA  tpm2.TPMHandle = 0x01c00002
	IndexCertECC  tpm2.TPMHandle = 0x01c0000a
	maxNVWrite                   = 1024
	platformRight                = tpm2.TPMRHPlatform
)

// Maker makes new TPMs.
type Maker struct {
	Keeper  []string // starts swtpm: see [Main]
	Program string   // swtpm
	Banks   []eventlog.Bank
	// Certify signs a certificate for an endorsement key; nil for none.
	Certify func(key crypto.PublicKey, about About) ([]byte, error)
	// KeepSRK keeps the public part of the storage root key, to which others seal; nil does not.
	KeepSRK func(public *tpm2.TPMTPublic) error
}

// About is what a TPM says of itself (TCG TPM 2.0 Library, part 2, section 6.13, TPM_PT).
type About struct {
	Manufacturer uint32 // as in TPM_PT_MANUFACTURER: four letters
	Model        string
	Version      uint32 // TPM_PT_FIRMWARE_VERSION_1
	Revision     uint32 // of the library, times 100
	Level        uint32
}

// Make makes a TPM in an empty directory: only the banks of PCRs that are asked for, endorsement
// keys with certificates, a storage root key that stays, and a counter. A key encrypts its state;
// nil does not.
func (m *Maker) Make(ctx context.Context, state *os.File, key []byte) (err error) {
	defer func() { err = interrupted(ctx, err) }()
	profile, err := m.profile(ctx)
	if err != nil {
		return err
	}
	p, err := run(ctx, m.Keeper, m.Program, state, key, profile...)
	if err != nil {
		return err
	}
	defer p.kill()
	steps := []func() error{
		func() error { _, err := tpm2.Startup{StartupType: tpm2.TPMSUClear}.Execute(p); return err },
		func() error { return p.allocate(m.Banks) },
		func() error { return p.keep(tpm2.TPMRHOwner, tpm.SRKTemplate(), tpm.HandleSRK, m.KeepSRK) },
		func() error { return m.endorse(p) },
		p.count,
		func() error { _, err := tpm2.Shutdown{ShutdownType: tpm2.TPMSUClear}.Execute(p); return err },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("make a TPM: %w", err)
		}
	}
	return p.stop()
}

// profile asks for a TPM that older versions of swtpm can read too. It cannot be changed later
// (swtpm(8), --profile; of 0.10 and later).
func (m *Maker) profile(ctx context.Context) ([]string, error) {
	out, err := exec.CommandContext(ctx, m.Program, "socket", "--tpm2", "--print-capabilities").Output()
	var has struct {
		Features []string `json:"features"`
	}
	if err == nil {
		err = json.Unmarshal(out, &has)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: it does not say what it can do: %w", ErrTPM, err)
	}
	if !slices.Contains(has.Features, "cmdarg-profile") {
		return nil, nil
	}
	return []string{"--profile", "name=null"}, nil
}

// Check is an error unless swtpm can start the TPM whose state is in a directory.
func Check(ctx context.Context, keeper []string, program string, state *os.File, key []byte) (err error) {
	defer func() { err = interrupted(ctx, err) }()
	p, err := run(ctx, keeper, program, state, key)
	if err != nil {
		return err
	}
	return p.stop()
}

// interrupted is what an error comes from once a context has ended: swtpm is killed then, and its
// channels say no more than that they have ended.
func interrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// allocate leaves only some banks of PCRs active, from the next start on. go-tpm has no such
// command (TCG TPM 2.0 Library, part 3, section 22.5, TPM2_PCR_Allocate).
func (p *process) allocate(banks []eventlog.Bank) error {
	const (
		tagSessions = 0x8002
		command     = 0x12b
		password    = 0x40000009
		selectSize  = 3
	)
	all := []eventlog.Bank{eventlog.SHA1, eventlog.SHA256, eventlog.SHA384, eventlog.SHA512}
	be := binary.BigEndian
	b := be.AppendUint32(be.AppendUint32(be.AppendUint16(nil, tagSessions), 0), command)
	b = be.AppendUint32(b, uint32(tpm2.TPMRHPlatform))
	b = append(be.AppendUint32(be.AppendUint32(b, 9), password), 0, 0, 0, 0, 0) // no nonce, attributes, password
	b = be.AppendUint32(b, uint32(len(all)))
	for _, bank := range all {
		selected := byte(0)
		if slices.Contains(banks, bank) {
			selected = 0xff
		}
		b = append(be.AppendUint16(b, uint16(bank)), selectSize, selected, selected, selected)
	}
	be.PutUint32(b[2:], uint32(len(b)))
	answer, err := p.Send(b)
	if err != nil {
		return err
	}
	if code := be.Uint32(answer[6:]); code != 0 {
		return fmt.Errorf("%w: it refuses the banks %v: %#x", ErrTPM, banks, code)
	}
	const success = 10 + 4 // header, size of the parameters
	if len(answer) <= success || answer[success] != 1 {
		return fmt.Errorf("%w: it has no room for the banks %v", ErrTPM, banks)
	}
	return nil
}

// keep makes a primary key, and keeps it under a handle. use, if not nil, gets its public part.
func (p *process) keep(
	hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic, at tpm2.TPMHandle, use func(*tpm2.TPMTPublic) error,
) error {
	r, err := tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(template)}.Execute(p)
	if err != nil {
		return err
	}
	_, err = tpm2.EvictControl{
		Auth: tpm2.TPMRHOwner, ObjectHandle: &tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name},
		PersistentHandle: at,
	}.Execute(p)
	if err == nil && use != nil {
		var public *tpm2.TPMTPublic
		if public, err = r.OutPublic.Contents(); err == nil {
			err = use(public)
		}
	}
	_, flush := tpm2.FlushContext{FlushHandle: r.ObjectHandle}.Execute(p)
	return errors.Join(err, flush)
}

// endorse makes the endorsement keys, and their certificates.
func (m *Maker) endorse(p *process) error {
	about, err := p.about()
	if err != nil {
		return err
	}
	for _, x := range []struct {
		template     tpm2.TPMTPublic
		handle, cert tpm2.TPMHandle
	}{
		{tpm2.RSAEKTemplate, HandleEKRSA, IndexCertRSA}, {tpm2.ECCEKTemplate, HandleEKECC, IndexCertECC},
	} {
		err := p.keep(tpm2.TPMRHEndorsement, x.template, x.handle, func(public *tpm2.TPMTPublic) error {
			if m.Certify == nil {
				return nil
			}
			key, err := tpm2.Pub(*public)
			if err != nil {
				return err
			}
			cert, err := m.Certify(key, about)
			if err != nil {
				return err
			}
			return p.store(x.cert, cert)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// store writes a certificate into an index of its size, which nothing can change then (TCG EK
// Credential Profile, section 2.2.1.5).
func (p *process) store(index tpm2.TPMHandle, data []byte) error {
	public := tpm2.TPMSNVPublic{
		NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(data)),
		Attributes: tpm2.TPMANV{
			PPWrite: true, WriteDefine: true, PPRead: true, OwnerRead: true, AuthRead: true, NoDA: true,
			PlatformCreate: true,
		},
	}
	define := tpm2.NVDefineSpace{AuthHandle: platformRight, PublicInfo: tpm2.New2B(public)}
	if _, err := define.Execute(p); err != nil {
		return err
	}
	for at := 0; at < len(data); at += maxNVWrite {
		name, err := p.name(index)
		if err != nil {
			return err
		}
		part := data[at:min(at+maxNVWrite, len(data))]
		_, err = tpm2.NVWrite{
			AuthHandle: platformRight, NVIndex: name, Data: tpm2.TPM2BMaxNVBuffer{Buffer: part}, Offset: uint16(at),
		}.Execute(p)
		if err != nil {
			return err
		}
	}
	name, err := p.name(index)
	if err != nil {
		return err
	}
	_, err = tpm2.NVWriteLock{AuthHandle: platformRight, NVIndex: name}.Execute(p)
	return err
}

// name is an index with its name, which the first write changes.
func (p *process) name(index tpm2.TPMHandle) (*tpm2.NamedHandle, error) {
	r, err := tpm2.NVReadPublic{NVIndex: index}.Execute(p)
	if err != nil {
		return nil, err
	}
	return &tpm2.NamedHandle{Handle: index, Name: r.NVName}, nil
}

// count makes the counter by which approvals of older kernels can be ended. Only a policy that
// nothing satisfies could remove it: a guest cannot define it anew, and so begin again.
func (p *process) count() error {
	if _, err := (tpm2.NVDefineSpace{
		AuthHandle: platformRight, PublicInfo: tpm2.New2B(tpm.CounterPublic()),
	}).Execute(p); err != nil {
		return err
	}
	name, err := p.name(tpm.Counter)
	if err != nil {
		return err
	}
	_, err = tpm2.NVIncrement{
		AuthHandle: tpm2.AuthHandle{
			Handle: tpm.Counter,
			Name:   name.Name,
			Auth:   tpm2.PasswordAuth(nil),
		}, NVIndex: name,
	}.Execute(p)
	return err
}

// about asks a TPM what it says of itself.
func (p *process) about() (a About, err error) {
	var model [4]uint32
	for _, x := range []struct {
		property tpm2.TPMPT
		to       *uint32
	}{
		{tpm2.TPMPTManufacturer, &a.Manufacturer},
		{tpm2.TPMPTFirmwareVersion1, &a.Version},
		{tpm2.TPMPTRevision, &a.Revision},
		{tpm2.TPMPTLevel, &a.Level},
		{tpm2.TPMPTVendorString1, &model[0]},
		{tpm2.TPMPTVendorString2, &model[1]},
		{tpm2.TPMPTVendorString3, &model[2]},
		{tpm2.TPMPTVendorString4, &model[3]},
	} {
		r, err := tpm2.GetCapability{
			Capability: tpm2.TPMCapTPMProperties, Property: uint32(x.property), PropertyCount: 1,
		}.Execute(p)
		if err != nil {
			return a, err
		}
		list, err := r.CapabilityData.Data.TPMProperties()
		if err != nil || len(list.TPMProperty) != 1 || list.TPMProperty[0].Property != x.property {
			return a, errors.Join(err, fmt.Errorf("%w: it does not say its property %#x", ErrTPM, uint32(x.property)))
		}
		*x.to = list.TPMProperty[0].Value
	}
	for _, word := range model {
		for _, c := range binary.BigEndian.AppendUint32(nil, word) {
			if c > ' ' && c < 0x7f {
				a.Model += string(c)
			}
		}
	}
	return a, nil
}
