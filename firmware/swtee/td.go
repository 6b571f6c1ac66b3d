package swtee

import (
	"encoding/hex"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/tdx"
)

// What KVM and the emulated TDX module support (TDX ABI, ATTRIBUTES and XFAM). KVM lets one
// attribute through (Linux 6.16, arch/x86/kvm/vmx/tdx.c, KVM_SUPPORTED_TD_ATTRS).
const (
	TDAttributes = 1 << 28 // SEPT_VE_DISABLE
	TDXFAM       = 0x61ae7
	tdXFAMFixed  = 3 // x87 and SSE cannot be left out
)

// TDParams is what TDH.MNG.INIT is given.
type TDParams struct {
	Attributes    uint64
	XFAM          uint64
	MRConfigID    [48]byte
	MROwner       [48]byte
	MROwnerConfig [48]byte
}

// TD is the context of one trust domain. Its methods are the commands of
// KVM_MEMORY_ENCRYPT_OP (Linux, Documentation/virt/kvm/x86/intel-tdx.rst) and
// fail with a unix.Errno, because KVM does not pass on the module's status.
type TD struct {
	context
	inited bool
	vcpus  map[int]bool
	pages  map[uint64]bool // by guest-physical address
	mrtd   *tdx.MRTD
	sum    *[48]byte // once finalized
	params TDParams
	rtmr   [registers][48]byte
}

// NewTD makes a context.
func (f *Firmware) NewTD() *TD { return &TD{context: f.newContext()} }

func (t *TD) require(inited bool, cmd Command) error {
	if t.resets != t.fw.resets {
		return refuse(unix.EIO, "%v", errReset)
	}
	if t.inited != inited || t.sum != nil {
		return refuse(unix.EINVAL, "%s out of order", cmd)
	}
	return nil
}

// Capabilities is KVM_TDX_CAPABILITIES; the caller knows the answer's layout.
func (t *TD) Capabilities() error { return t.fw.do(CmdTDXCapabilities, func() error { return nil }) }

// InitVM is KVM_TDX_INIT_VM.
func (t *TD) InitVM(p TDParams) error {
	return t.fw.do(CmdTDXInitVM, func() error {
		if err := t.require(false, CmdTDXInitVM); err != nil {
			return err
		}
		if p.XFAM&tdXFAMFixed != tdXFAMFixed {
			return refuse(unix.EINVAL, "XFAM %#x lacks %#x", p.XFAM, uint64(tdXFAMFixed))
		}
		if p.Attributes&^TDAttributes != 0 || p.XFAM&^TDXFAM != 0 {
			return refuse(unix.EINVAL, "attributes %#x, XFAM %#x: the module supports %#x and %#x",
				p.Attributes, p.XFAM, uint64(TDAttributes), uint64(TDXFAM))
		}
		t.inited, t.mrtd, t.fw.started, t.params = true, tdx.NewMRTD(), true, p
		t.vcpus, t.pages = map[int]bool{}, map[uint64]bool{}
		t.fw.report.Technology = "tdx"
		t.fw.launch().TD = &TDReport{
			Attributes: fmt.Sprintf("%#x", p.Attributes), XFAM: fmt.Sprintf("%#x", p.XFAM),
			MRConfigID: hex.EncodeToString(p.MRConfigID[:]), MROwner: hex.EncodeToString(p.MROwner[:]),
			MROwnerConfig: hex.EncodeToString(p.MROwnerConfig[:]),
		}
		return nil
	})
}

// InitVCPU is KVM_TDX_INIT_VCPU of the vCPU with a number: once for each.
func (t *TD) InitVCPU(vcpu int) error {
	return t.fw.do(CmdTDXInitVCPU, func() error {
		if err := t.require(true, CmdTDXInitVCPU); err != nil {
			return err
		}
		if t.vcpus[vcpu] {
			return refuse(unix.EINVAL, "vCPU %d was initialised already", vcpu)
		}
		t.vcpus[vcpu] = true
		t.fw.launch().TD.VCPUs = len(t.vcpus)
		return nil
	})
}

// GetCPUID is KVM_TDX_GET_CPUID; the answer is empty.
func (t *TD) GetCPUID() error {
	return t.fw.do(CmdTDXGetCPUID, func() error { return t.require(true, CmdTDXGetCPUID) })
}

// InitMemRegion is KVM_TDX_INIT_MEM_REGION: whole pages from an address on,
// measured or not. Each page is added and immediately extended, as in KVM.
func (t *TD) InitMemRegion(gpa uint64, contents []byte, measure bool) error {
	return t.fw.do(CmdTDXInitMemRegion, func() error {
		if err := t.require(true, CmdTDXInitMemRegion); err != nil {
			return err
		}
		if len(contents) == 0 || len(contents)%tdx.PageSize != 0 || gpa%tdx.PageSize != 0 {
			return refuse(unix.EINVAL, "%d bytes at %#x are not whole pages", len(contents), gpa)
		}
		for off := 0; off < len(contents); off += tdx.PageSize {
			at, page := gpa+uint64(off), contents[off:off+tdx.PageSize]
			if t.pages[at] { // TDX_EPT_ENTRY_STATE_INCORRECT of TDH.MEM.PAGE.ADD
				return refuse(unix.EIO, "the page at %#x has been added already", at)
			}
			t.pages[at] = true
			t.mrtd.AddPage(at)
			if measure {
				t.mrtd.ExtendPage(at, page)
			}
			if t.fw.RecordPages {
				t.fw.addPage(Page{
					Type:     "page",
					GPA:      address(at),
					Size:     len(page),
					Measured: measure,
					Digest:   hexSHA384(page),
				})
			}
		}
		return nil
	})
}

// Finalize is KVM_TDX_FINALIZE_VM: it completes MRTD.
func (t *TD) Finalize() error {
	return t.fw.do(CmdTDXFinalizeVM, func() error {
		if err := t.require(true, CmdTDXFinalizeVM); err != nil {
			return err
		}
		sum := t.mrtd.Sum()
		t.sum = &sum
		t.fw.launch().Digest = hex.EncodeToString(sum[:])
		return nil
	})
}
