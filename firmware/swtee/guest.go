package swtee

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"math/big"
	"slices"

	"golang.org/x/sys/unix"

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

// Guest is the context of one SEV or SEV-ES guest in the emulated firmware. Its
// methods are the commands of the SEV API and fail with a sev.Status, wrapped
// with a reason, which real firmware does not give, or with a unix.Errno where the
// kernel would refuse. It is not safe for concurrent use.
type Guest struct {
	context
	state       State
	inited      bool
	es          bool
	policy      sev.Policy
	keys        session.Keys
	digest      backgroundHash
	launched    [32]byte // the launch digest, once measured
	measurement sev.Measurement
}

// NewGuest makes a context in the state uninit.
func (f *Firmware) NewGuest() *Guest { return &Guest{context: f.newContext()} }

// State returns the guest's state.
func (g *Guest) State() State { return g.state }

// Policy returns the guest's policy.
func (g *Guest) Policy() sev.Policy { return g.policy }

// Handle is the firmware's handle for the guest.
func (g *Guest) Handle() uint32 { return 1 }

// Wipe overwrites the guest's keys.
func (g *Guest) Wipe() { g.keys.Wipe() }

func refuse(code error, format string, args ...any) error {
	return fmt.Errorf("%w: %s", code, fmt.Sprintf(format, args...))
}

func (g *Guest) require(want State, command Command) error {
	if err := g.alive(); err != nil {
		return err
	}
	if !g.inited {
		return refuse(unix.ENOTTY, "%s before the VM was initialised for SEV", command)
	}
	if g.state != want {
		return refuse(sev.StatusInvalidGuestState, "%s in state %v, needs %v", command, g.state, want)
	}
	return nil
}

// Init is what the kernel does before a launch: it takes an encryption slot. The
// command is INIT, ES_INIT or INIT2; features are INIT2's vmsa_features (Linux,
// Documentation/virt/kvm/x86/amd-memory-encryption.rst).
func (g *Guest) Init(cmd Command, es bool, features uint64) error {
	return g.fw.do(cmd, func() error {
		if g.inited {
			return refuse(unix.EINVAL, "initialised already")
		}
		g.inited, g.es = true, es
		g.fw.report.Technology = "sev"
		if es {
			g.fw.report.Technology = "sev-es"
		}
		if cmd == CmdInit2 {
			g.fw.launch().VMSAFeatures = fmt.Sprintf("%#x", features)
		}
		return nil
	})
}

// LaunchStart begins a launch (SEV API, chapter 6.2). Owner certificate and
// session are the raw bytes from the guest's owner, or both nil: then the keys
// are random and the launch cannot be verified.
func (g *Guest) LaunchStart(policy sev.Policy, owner, blob []byte) error {
	return g.fw.do(CmdLaunchStart, func() error {
		if err := g.require(StateUninit, CmdLaunchStart); err != nil {
			return err
		}
		if err := policy.Check(); err != nil {
			return refuse(sev.StatusInvalidParam, "%v", err)
		}
		if !policy.Admits(FirmwareBuild()) {
			return refuse(sev.StatusPolicyFailure, "policy %v asks for newer firmware than %v", policy, FirmwareBuild())
		}
		if g.es != (policy&sev.PolicyES != 0) {
			return refuse(sev.StatusPolicyFailure, "policy %v and the kind of VM do not agree about SEV-ES", policy)
		}
		if owner == nil && blob == nil {
			_, _ = rand.Read(g.keys.TEK[:]) // never fails (crypto/rand)
			_, _ = rand.Read(g.keys.TIK[:])
		} else if err := g.unwrap(policy, owner, blob); err != nil {
			return err
		}
		g.policy, g.digest, g.state = policy, backgroundHash{h: sha256.New()}, StateLaunchUpdate
		g.fw.started = true
		g.fw.launch().Policy = fmt.Sprintf("%#x", uint32(policy))
		return nil
	})
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
	platform, err := g.fw.keys()
	if err != nil {
		return refuse(sev.StatusHardwarePlatform, "%v", err)
	}
	pdh, err := platform.pdh.ECDH()
	if err != nil {
		return refuse(sev.StatusHardwarePlatform, "%v", err)
	}
	if g.keys, err = session.Unwrap(pdh, cert, blob, policy); err != nil {
		return refuse(sev.StatusBadMeasurement, "%v", err)
	}
	return nil
}

// backgroundHash hashes while its caller goes on.
type backgroundHash struct {
	h    hash.Hash
	last chan struct{} // closed once everything written is hashed
}

// write takes ownership of b: the caller must not change it any more.
func (d *backgroundHash) write(b []byte) {
	before, done := d.last, make(chan struct{})
	d.last = done
	go func() {
		defer close(done)
		if before != nil {
			<-before
		}
		d.h.Write(b)
	}()
}

func (d *backgroundHash) sum() []byte {
	if d.last != nil {
		<-d.last
	}
	return d.h.Sum(nil)
}

// LaunchUpdateData adds bytes to the launch digest (SEV API, chapter 6.3) and
// keeps them: they must not change any more. The address is for the report only:
// SEV does not measure it.
func (g *Guest) LaunchUpdateData(gpa uint64, b []byte) error {
	return g.fw.do(CmdLaunchUpdateData, func() error {
		if err := g.require(StateLaunchUpdate, CmdLaunchUpdateData); err != nil {
			return err
		}
		if len(b) == 0 || len(b)%16 != 0 {
			return refuse(sev.StatusInvalidLength, "%d bytes, must be a multiple of 16", len(b))
		}
		g.digest.write(b)
		if g.fw.RecordPages {
			g.fw.addPage(Page{Type: "data", GPA: address(gpa), Size: len(b), Measured: true, Digest: hexSHA256(b)})
		}
		return nil
	})
}

// RegisterPage is the save area of one vCPU, as KVM makes it for the firmware.
type RegisterPage struct {
	VCPU int
	VMSA []byte // 4096 bytes
}

func (p RegisterPage) record(gpa uint64, digest string) Page {
	return Page{
		Type: "vmsa", GPA: address(gpa), Size: len(p.VMSA), VCPU: &p.VCPU, Measured: true, Digest: digest,
		Contents: bytes.TrimRight(p.VMSA, "\x00"),
	}
}

// LaunchUpdateVMSA adds the register state of an SEV-ES guest's vCPUs (SEV API,
// chapter 6.4). KVM submits those of all vCPUs in one request.
func (g *Guest) LaunchUpdateVMSA(pages []RegisterPage) error {
	return g.fw.do(CmdLaunchUpdateVMSA, func() error {
		if err := g.require(StateLaunchUpdate, CmdLaunchUpdateVMSA); err != nil {
			return err
		}
		if !g.es {
			return refuse(unix.ENOTTY, "LAUNCH_UPDATE_VMSA without SEV-ES")
		}
		for _, p := range pages {
			g.digest.write(p.VMSA)
			g.fw.addPage(p.record(UnknownGPA, hexSHA256(p.VMSA)))
		}
		return nil
	})
}

// LaunchMeasure ends the loading of the guest and returns the measurement
// (SEV API, chapter 6.5).
func (g *Guest) LaunchMeasure() (sev.Measurement, error) {
	err := g.fw.do(CmdLaunchMeasure, func() error {
		if err := g.require(StateLaunchUpdate, CmdLaunchMeasure); err != nil {
			return err
		}
		g.launched = [32]byte(g.digest.sum())
		_, _ = rand.Read(g.measurement.Nonce[:])
		g.measurement.MAC = g.keys.LaunchMAC(FirmwareBuild(), g.policy, g.launched, g.measurement.Nonce)
		g.state = StateLaunchSecret
		l := g.fw.launch()
		l.Digest, l.Measurement = hex.EncodeToString(g.launched[:]), g.measurement.Bytes()
		return nil
	})
	if err != nil {
		return sev.Measurement{}, err
	}
	return g.measurement, nil
}

// Measurement returns what LaunchMeasure returned.
func (g *Guest) Measurement() (m sev.Measurement, ok bool) {
	return g.measurement, g.state >= StateLaunchSecret
}

// LaunchDigest returns the digest that was measured. Real firmware never shows it alone.
func (g *Guest) LaunchDigest() [32]byte { return g.launched }

// LaunchSecret authenticates and decrypts a packet (SEV API, chapter 6.6). The
// caller writes the plaintext into guest memory and wipes it.
func (g *Guest) LaunchSecret(header, data []byte, guestLen int) (plain []byte, err error) {
	err = g.fw.do(CmdLaunchSecret, func() error {
		if err := g.require(StateLaunchSecret, CmdLaunchSecret); err != nil {
			return err
		}
		whole := guestLen > 0 && guestLen%16 == 0 && guestLen <= session.MaxSecret
		if len(header) != session.HeaderSize || len(data) != guestLen || !whole {
			return refuse(sev.StatusInvalidLength, "header of %d bytes, secret of %d", len(header), len(data))
		}
		p := session.Packet{Header: [session.HeaderSize]byte(header), Data: data}
		plain, err = g.keys.Open(p, guestLen, g.measurement)
		switch {
		case err == session.ErrCompressed:
			return refuse(sev.StatusUnsupported, "%v", err)
		case err != nil:
			return refuse(sev.StatusBadMeasurement, "%v", err)
		}
		g.fw.launch().SecretSize += len(plain)
		return nil
	})
	return plain, err
}

// LaunchFinish makes the guest runnable (SEV API, chapter 6.7).
func (g *Guest) LaunchFinish() error {
	return g.fw.do(CmdLaunchFinish, func() error {
		if err := g.require(StateLaunchSecret, CmdLaunchFinish); err != nil {
			return err
		}
		g.state = StateRunning
		return nil
	})
}

// Status answers GUEST_STATUS (SEV API, chapter 6.17).
func (g *Guest) Status() (State, error) {
	err := g.fw.do(CmdGuestStatus, func() error { return g.alive() })
	return g.state, err
}

// AttestationReportSize is the length of an attestation report (SEV API, chapter
// 6.8, table 66).
const AttestationReportSize = 208

// AttestationReport signs the launch digest with the PEK (SEV API, chapter 6.8).
func (g *Guest) AttestationReport(mnonce [16]byte) (report []byte, err error) {
	err = g.fw.do(CmdAttestation, func() error {
		if err := g.alive(); err != nil {
			return err
		}
		if g.state < StateLaunchSecret {
			return refuse(sev.StatusInvalidGuestState, "ATTESTATION in state %v", g.state)
		}
		report, err = g.signReport(mnonce)
		return err
	})
	return report, err
}

func (g *Guest) signReport(mnonce [16]byte) ([]byte, error) {
	r := slices.Concat(mnonce[:], g.launched[:])
	r = le.AppendUint32(r, uint32(g.policy))
	sum := sha256.Sum256(r)
	platform, err := g.fw.keys()
	if err != nil {
		return nil, refuse(sev.StatusHardwarePlatform, "%v", err)
	}
	sigR, sigS, err := ecdsa.Sign(rand.Reader, platform.pek, sum[:])
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
