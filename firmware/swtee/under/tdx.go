package under

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/firmware/swtee/internal/trap"
	"github.com/vmlatch/vmlatch/firmware/tdx"
)

// Offsets in the structures of kvm_tdx_cmd (Linux, arch/x86/include/uapi/asm/kvm.h):
// struct kvm_tdx_capabilities has 256 u64 before its CPUID list; struct
// kvm_tdx_init_vm has attributes, xfam, three measurements of 6 u64 each.
const (
	tdxCapsCPUID   = 256 * 8
	tdxInitVMSize  = 160
	flagMeasure    = 1 // KVM_TDX_MEASURE_MEMORY_REGION
	tdxRegionBytes = 24
)

func (s *supervisor) tdxCommand(c *trap.Call, id, flags uint32, data uint64) error {
	if s.td == nil {
		s.td = s.fw.NewTD()
		s.opt.Record.guest(nil, s.td)
	}
	if flags != 0 && id != tdxInitMemRegion {
		return fmt.Errorf("%w: TDX command %d with flags %#x", unix.EINVAL, id, flags)
	}
	switch id {
	case tdxCapabilities:
		if err := s.td.Capabilities(); err != nil {
			return err
		}
		b := le.AppendUint64(le.AppendUint64(nil, swtee.TDAttributes), swtee.TDXFAM)
		if err := c.Write(data, b); err != nil {
			return unix.EFAULT
		}
		return fault(c.Write(data+tdxCapsCPUID, make([]byte, 4))) // no CPUID is configurable
	case tdxInitVM:
		b, err := c.Read(data, tdxInitVMSize)
		if err != nil {
			return unix.EFAULT
		}
		return s.td.InitVM(swtee.TDParams{
			Attributes: le.Uint64(b), XFAM: le.Uint64(b[8:]),
			MRConfigID: [48]byte(b[16:]), MROwner: [48]byte(b[64:]), MROwnerConfig: [48]byte(b[112:]),
		})
	case tdxInitVCPU:
		n, ok := vcpuOf(fileName(c))
		if !ok {
			return fmt.Errorf("%w: TDX_INIT_VCPU is a command of a vCPU", unix.ENOTTY)
		}
		return s.td.InitVCPU(n)
	case tdxInitMemRegion:
		return s.tdxInitMemRegion(c, flags, data)
	case tdxFinalizeVM:
		err := s.td.Finalize()
		s.fw.WithReport(func(r *swtee.Report) {
			if r.Launch != nil {
				s.log.Info("TDX_FINALIZE_VM", "mrtd", r.Launch.Digest)
			}
		})
		return err
	case tdxGetCPUID:
		if err := s.td.GetCPUID(); err != nil {
			return err
		}
		return fault(c.Write(data, make([]byte, 4)))
	}
	s.log.Warn("a TDX command that is not emulated", "command", id)
	return fmt.Errorf("%w: TDX command %d", unix.EINVAL, id)
}

// tdxInitMemRegion answers KVM_TDX_INIT_MEM_REGION: u64 source address, u64
// guest-physical address, u64 number of pages. KVM advances the three.
func (s *supervisor) tdxInitMemRegion(c *trap.Call, flags uint32, data uint64) error {
	b, err := c.Read(data, tdxRegionBytes)
	if err != nil {
		return unix.EFAULT
	}
	src, gpa, pages := le.Uint64(b), le.Uint64(b[8:]), le.Uint64(b[16:])
	if pages > maxRegion/tdx.PageSize || src%tdx.PageSize != 0 || flags&^flagMeasure != 0 {
		return fmt.Errorf("%w: %d pages from %#x, flags %#x", unix.EINVAL, pages, src, flags)
	}
	contents, err := c.Read(src, int(pages)*tdx.PageSize)
	if err != nil {
		return unix.EFAULT
	}
	measured := flags&flagMeasure != 0
	if err := s.td.InitMemRegion(gpa, contents, measured); err != nil {
		return err
	}
	s.opt.Record.add(Region{GPA: gpa, Type: sev.PageNormal, Measured: measured, Contents: contents})
	// The module copies pages into the guest's private memory, which here is the
	// same as its shared memory.
	if hva, ok := s.hvaOf(gpa); ok && hva != src {
		if err := c.Write(hva, contents); err != nil {
			return unix.EFAULT
		}
	}
	n := pages * tdx.PageSize
	next := le.AppendUint64(le.AppendUint64(nil, src+n), gpa+n)
	return fault(c.Write(data, le.AppendUint64(next, 0)))
}
