package swtee

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"math/big"
	"slices"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/session"
)

// State is a guest context's state (SEV API, chapter 6.1.1, table 42).
type State int

// Guest states.
const (
	StateUninit       State = iota
	StateLaunchUpdate       // between LAUNCH_START and LAUNCH_MEASURE
	StateLaunchSecret       // measured; secrets may be injected
	StateRunning
)

var stateNames = []string{"uninit", "launch-update", "launch-secret", "running"}

// String is the state as QEMU's SevState spells it.
func (s State) String() string { return stateNames[s] }

// Guest is the context of one guest in the emulated firmware. Its methods are
// the commands of the SEV API and fail with a sev.Status, wrapped with the
// reason that real firmware does not tell. It is not safe for concurrent use.
type Guest struct {
	platform    *Platform
	state       State
	policy      sev.Policy
	keys        session.Keys
	digest      hash.Hash
	launched    [32]byte // the launch digest, once measured
	measurement sev.Measurement
}

// NewGuest makes a context in the state uninit.
func (p *Platform) NewGuest() *Guest { return &Guest{platform: p} }

// State returns the guest's state.
func (g *Guest) State() State { return g.state }

// Policy returns the guest's policy.
func (g *Guest) Policy() sev.Policy { return g.policy }

// Handle is the firmware's handle of the guest.
func (g *Guest) Handle() uint32 { return 1 }

// Wipe overwrites the guest's keys.
func (g *Guest) Wipe() { g.keys.Wipe() }

func refuse(s sev.Status, format string, args ...any) error {
	return fmt.Errorf("%w: %s", s, fmt.Sprintf(format, args...))
}

func (g *Guest) require(want State, command string) error {
	if g.state != want {
		return refuse(sev.StatusInvalidGuestState, "%s in state %v, needs %v", command, g.state, want)
	}
	return nil
}

// LaunchStart begins a launch (SEV API, chapter 6.2). Owner certificate and
// session are the raw bytes from the guest's owner, or both nil: then the keys
// are random and nobody can verify the launch.
func (g *Guest) LaunchStart(policy sev.Policy, owner, blob []byte) error {
	if err := g.require(StateUninit, "LAUNCH_START"); err != nil {
		return err
	}
	if err := policy.Check(); err != nil {
		return refuse(sev.StatusInvalidParam, "%v", err)
	}
	if !policy.Admits(FirmwareBuild) {
		return refuse(sev.StatusPolicyFailure, "policy %v asks for newer firmware than %v", policy, FirmwareBuild)
	}
	if owner == nil && blob == nil {
		_, _ = rand.Read(g.keys.TEK[:]) // never fails (crypto/rand)
		_, _ = rand.Read(g.keys.TIK[:])
	} else if err := g.unwrap(policy, owner, blob); err != nil {
		return err
	}
	g.policy, g.digest, g.state = policy, sha256.New(), StateLaunchUpdate
	return nil
}

func (g *Guest) unwrap(policy sev.Policy, owner, blob []byte) error {
	if len(owner) != sev.CertificateSize || len(blob) != session.BlobSize {
		return refuse(sev.StatusInvalidLength, "certificate of %d bytes, session of %d", len(owner), len(blob))
	}
	cert, err := sev.ParseCertificate(owner)
	if err != nil {
		return refuse(sev.StatusInvalidCertificate, "%v", err)
	}
	if cert.Usage != sev.UsagePDH {
		return refuse(sev.StatusInvalidCertificate, "the owner's certificate is a %v, not a PDH", cert.Usage)
	}
	pdh, err := g.platform.pdh.ECDH()
	if err != nil {
		return refuse(sev.StatusInvalidCertificate, "%v", err)
	}
	if g.keys, err = session.Unwrap(pdh, cert, blob, policy); err != nil {
		return refuse(sev.StatusBadMeasurement, "%v", err)
	}
	return nil
}

// LaunchUpdateData adds bytes to the launch digest (SEV API, chapter 6.3).
func (g *Guest) LaunchUpdateData(b []byte) error {
	if err := g.require(StateLaunchUpdate, "LAUNCH_UPDATE_DATA"); err != nil {
		return err
	}
	if len(b) == 0 || len(b)%16 != 0 {
		return refuse(sev.StatusInvalidLength, "%d bytes, must be a multiple of 16", len(b))
	}
	g.digest.Write(b)
	return nil
}

// LaunchMeasure ends the loading of the guest and returns the measurement
// (SEV API, chapter 6.5).
func (g *Guest) LaunchMeasure() (sev.Measurement, error) {
	if err := g.require(StateLaunchUpdate, "LAUNCH_MEASURE"); err != nil {
		return sev.Measurement{}, err
	}
	g.digest.Sum(g.launched[:0])
	_, _ = rand.Read(g.measurement.Nonce[:])
	g.measurement.MAC = g.keys.LaunchMAC(FirmwareBuild, g.policy, g.launched, g.measurement.Nonce)
	g.state = StateLaunchSecret
	return g.measurement, nil
}

// Measurement returns what LaunchMeasure returned, LaunchDigest the digest in it.
func (g *Guest) Measurement() (m sev.Measurement, ok bool) {
	return g.measurement, g.state >= StateLaunchSecret
}

// LaunchDigest returns the digest that was measured. Real firmware never shows it alone.
func (g *Guest) LaunchDigest() [32]byte { return g.launched }

// LaunchSecret authenticates and decrypts a packet (SEV API, chapter 6.6). The
// caller writes the plaintext into guest memory and wipes it.
func (g *Guest) LaunchSecret(header, data []byte, guestLen int) ([]byte, error) {
	if err := g.require(StateLaunchSecret, "LAUNCH_SECRET"); err != nil {
		return nil, err
	}
	if len(header) != session.HeaderSize || len(data) != guestLen || guestLen == 0 || guestLen%16 != 0 || guestLen > session.MaxSecret {
		return nil, refuse(sev.StatusInvalidLength, "header of %d bytes, secret of %d", len(header), len(data))
	}
	p := session.Packet{Header: [session.HeaderSize]byte(header), Data: data}
	plain, err := g.keys.Open(p, guestLen, g.measurement)
	switch {
	case err == session.ErrCompressed:
		return nil, refuse(sev.StatusUnsupported, "%v", err)
	case err != nil:
		return nil, refuse(sev.StatusBadMeasurement, "%v", err)
	}
	return plain, nil
}

// LaunchFinish makes the guest runnable (SEV API, chapter 6.7).
func (g *Guest) LaunchFinish() error {
	if err := g.require(StateLaunchSecret, "LAUNCH_FINISH"); err != nil {
		return err
	}
	g.state = StateRunning
	return nil
}

// AttestationReport signs the launch digest with the PEK (SEV API, chapter 6.8,
// table 66): 208 bytes.
func (g *Guest) AttestationReport(mnonce [16]byte) ([]byte, error) {
	if g.state < StateLaunchSecret {
		return nil, refuse(sev.StatusInvalidGuestState, "ATTESTATION in state %v", g.state)
	}
	le := binary.LittleEndian
	r := slices.Concat(mnonce[:], g.launched[:])
	r = le.AppendUint32(r, uint32(g.policy))
	sum := sha256.Sum256(r)
	sigR, sigS, err := ecdsa.Sign(rand.Reader, g.platform.pek, sum[:])
	if err != nil {
		return nil, err
	}
	r = le.AppendUint32(r, uint32(sev.UsagePEK))
	r = le.AppendUint32(r, uint32(sev.AlgoECDSASHA256))
	r = le.AppendUint32(r, 0)
	for _, n := range []*big.Int{sigR, sigS} {
		b := n.FillBytes(make([]byte, 72))
		slices.Reverse(b)
		r = append(r, b...)
	}
	return r, nil
}
