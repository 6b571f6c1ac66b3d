package swtee

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
)

// SNPGuest is the context of one SEV-SNP guest. Its methods are the commands of
// the SNP ABI as KVM passes them on.
type SNPGuest struct {
	context
	state  State
	policy uint64
	digest sev.SNPDigest
	claims report.Report // what the launch decides of reports
	// vcekDisabled says that the chip's key signs no reports of this guest.
	vcekDisabled bool
	loaded       map[uint64]bool // by guest frame number
	// The last page that was hashed: firmware images are full of equal ones.
	last    []byte
	lastSum [48]byte
}

// NewSNPGuest makes a context in the state uninit.
func (f *Firmware) NewSNPGuest() *SNPGuest {
	return &SNPGuest{context: f.newContext(), loaded: map[uint64]bool{}}
}

// Init is KVM_SEV_INIT2 of an SNP guest; features are its vmsa_features.
func (g *SNPGuest) Init(features uint64) error {
	return g.fw.do(CmdInit2, func() error {
		g.fw.report.Technology = "sev-snp"
		g.fw.launch().VMSAFeatures = fmt.Sprintf("%#x", features)
		return nil
	})
}

func (g *SNPGuest) require(want State, cmd Command) error {
	if err := g.alive(); err != nil {
		return err
	}
	if g.state != want {
		return refuse(sev.StatusInvalidGuestState, "%s in state %v, needs %v", cmd, g.state, want)
	}
	return nil
}

// snpPolicyKVM are the bits of a policy, next to the ABI version, that KVM lets through
// (Linux 6.14 to 6.18, arch/x86/kvm/svm/sev.c, SNP_POLICY_MASK_VALID).
const snpPolicyKVM = 0xffff | sev.SNPPolicySMT | sev.SNPPolicyReserved | sev.SNPPolicyDebug | sev.SNPPolicySingleSocket

// LaunchStart begins a launch (SNP ABI, chapter 8.16, SNP_LAUNCH_START). The platform has
// one socket, and runs two threads on a core.
func (g *SNPGuest) LaunchStart(policy uint64) error {
	return g.fw.do(CmdSNPLaunchStart, func() error {
		if err := g.require(StateUninit, CmdSNPLaunchStart); err != nil {
			return err
		}
		p := sev.SNPPolicy(policy)
		switch {
		case p.Check() != nil:
			return refuse(unix.EINVAL, "policy %#x: bit 17 must be set, and none above 25", policy)
		case p&^snpPolicyKVM != 0:
			return refuse(unix.EINVAL, "policy %v: KVM supports only %#x", p, uint64(snpPolicyKVM))
		case !p.Admits(FirmwareBuild()):
			return refuse(sev.StatusPolicyFailure,
				"policy %#x asks for newer firmware than %v", policy, FirmwareBuild())
		case p&sev.SNPPolicySMT == 0:
			return refuse(sev.StatusPolicyFailure,
				"policy %#x forbids SMT, which this platform has switched on", policy)
		}
		g.policy, g.state, g.fw.started = policy, StateLaunchUpdate, true
		g.fw.launch().Policy = fmt.Sprintf("%#x", policy)
		return nil
	})
}

// LaunchUpdate adds pages of one type from an address on (SNP ABI, chapter 8.17,
// SNP_LAUNCH_UPDATE, one command a page). The contents of zero pages are not read.
func (g *SNPGuest) LaunchUpdate(t sev.PageType, gpa uint64, contents []byte) error {
	return g.fw.do(CmdSNPLaunchUpdate, func() error {
		if err := g.require(StateLaunchUpdate, CmdSNPLaunchUpdate); err != nil {
			return err
		}
		switch t {
		case sev.PageNormal, sev.PageZero, sev.PageUnmeasured, sev.PageSecrets, sev.PageCPUID:
		default:
			return refuse(unix.EINVAL, "page type %d", t)
		}
		if len(contents) == 0 || len(contents)%sev.PageSize != 0 || gpa%sev.PageSize != 0 {
			return refuse(unix.EINVAL, "%d bytes at %#x are not whole pages", len(contents), gpa)
		}
		for off := 0; off < len(contents); off += sev.PageSize {
			at, page := gpa+uint64(off), contents[off:off+sev.PageSize]
			if g.loaded[at/sev.PageSize] {
				return refuse(unix.EEXIST, "the page at %#x has been loaded already", at)
			}
			if t == sev.PageCPUID && le.Uint32(page) > maxCPUID {
				return refuse(sev.StatusInvalidParam, "%d CPUID functions, at most %d", le.Uint32(page), maxCPUID)
			}
			g.loaded[at/sev.PageSize] = true
			g.extend(t, at, page)
		}
		return nil
	})
}

// maxCPUID is the number of functions that a CPUID page has room for (SNP ABI, chapter 8.17.2.6).
const maxCPUID = 64

var le = binary.LittleEndian

func (g *SNPGuest) extend(t sev.PageType, gpa uint64, page []byte) {
	if (t.Measured() || g.fw.RecordPages) && !bytes.Equal(page, g.last) {
		g.last, g.lastSum = bytes.Clone(page), sha512.Sum384(page)
	}
	g.digest.Extend(t, gpa, g.lastSum) // which leaves out contents that are not measured
	g.fw.addPage(Page{
		Type: t.String(), GPA: address(gpa), Size: len(page),
		Measured: t.Measured(), Digest: hex.EncodeToString(g.lastSum[:]),
	})
}

// SNPFinish is what SNP_LAUNCH_FINISH is given (SNP ABI, chapter 8.18).
type SNPFinish struct {
	IDBlock      []byte // 96 bytes, or nil
	IDAuth       []byte // 4096 bytes, with IDBlock
	AuthorKey    bool   // AUTH_KEY_EN
	VCEKDisabled bool
	HostData     [32]byte
	VMSAs        []RegisterPage // KVM submits them first
}

// LaunchFinish measures the register pages, checks the ID block and makes the
// guest runnable.
func (g *SNPGuest) LaunchFinish(in SNPFinish) error {
	return g.fw.do(CmdSNPLaunchFinish, func() error {
		if err := g.require(StateLaunchUpdate, CmdSNPLaunchFinish); err != nil {
			return err
		}
		for _, v := range in.VMSAs {
			sum := sha512.Sum384(v.VMSA)
			g.digest.Extend(sev.PageVMSA, sev.VMSAAddress, sum)
			g.fw.addPage(v.record(sev.VMSAAddress, hex.EncodeToString(sum[:])))
		}
		l := g.fw.launch()
		l.Digest, l.HostData, l.VCEKDisabled = g.digest.String(), in.HostData[:], in.VCEKDisabled
		if in.IDBlock != nil {
			if err := g.checkIDBlock(in); err != nil {
				return err
			}
			l.IDBlock, l.AuthorKey = true, in.AuthorKey
		}
		if err := g.claim(in); err != nil {
			return refuse(sev.StatusInvalidParam, "%v", err)
		}
		g.state = StateRunning
		return nil
	})
}

func (g *SNPGuest) checkIDBlock(in SNPFinish) error {
	id, err := sev.ParseIDBlock(in.IDBlock)
	if err != nil {
		return refuse(sev.StatusInvalidLength, "%v", err)
	}
	_, err = sev.VerifyIDAuth(id, in.IDAuth, in.AuthorKey)
	switch {
	case errors.Is(err, sev.ErrIDAuthFormat):
		return refuse(sev.StatusInvalidParam, "%v", err)
	case err != nil:
		return refuse(sev.StatusBadSignature, "%v", err)
	case id.Digest != g.digest:
		return refuse(sev.StatusBadMeasurement,
			"the id block is for digest %v, this launch has %v", id.Digest, g.digest)
	case id.Policy != g.policy:
		return refuse(sev.StatusPolicyFailure,
			"the id block is for policy %#x, this launch has %#x", id.Policy, g.policy)
	}
	return nil
}
