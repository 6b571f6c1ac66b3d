package under

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/firmware/swtee/internal/trap"
)

var le = binary.LittleEndian

// supervisor is one running QEMU and what the emulated platform knows about it. All its
// state belongs to the goroutine that serves QEMU's calls.
type supervisor struct {
	opt          Options
	fw           *swtee.Firmware
	log          *slog.Logger
	tracer       *trap.Tracer
	confidential bool   // QEMU was given a SEV object
	cbit         uint32 // the encryption bit in CPUID
	trapsCPUID   bool   // this machine can show QEMU another processor

	again    int    // the thread whose KVM_CREATE_VM is being made again; 0: none
	vmType   uint64 // as QEMU asked
	slots    map[uint32]slot
	vcpus    map[int]*vcpu
	cpuids   map[int][]byte // of KVM_SET_CPUID2, by vCPU, as QEMU gave it
	unplaced map[int]uint64 // pages of the report whose address is to be found
	features uint64         // sev_features of the VMSAs

	guest *swtee.Guest
	snp   *swtee.SNPGuest
	td    *swtee.TD
	kvm   *fakeKVM // nil above a real KVM
}

// slot is a memory slot of the VM: where guest memory lies in QEMU.
type slot struct{ gpa, size, hva uint64 }

func newSupervisor(opt Options) *supervisor {
	s := &supervisor{
		opt: opt, log: opt.Logger, cbit: swtee.CBitPos,
		trapsCPUID: !opt.noCPUIDFaulting && trap.CPUIDFaulting(),
	}
	if opt.FakeKVM {
		s.kvm = newFakeKVM()
	}
	return s
}

// newVM forgets the previous VM, if any: QEMU makes a new one to reset a confidential
// guest.
func (s *supervisor) newVM(vmType uint64) {
	s.guestWipe()
	s.guest, s.snp, s.td, s.vmType, s.features = nil, nil, nil, vmType, 0
	s.slots, s.vcpus, s.cpuids, s.unplaced = map[uint32]slot{}, map[int]*vcpu{}, map[int][]byte{}, map[int]uint64{}
	s.fw.BeginLaunch()
	s.opt.Record.reset()
}

func (s *supervisor) guestWipe() {
	if s.guest != nil {
		s.guest.Wipe()
	}
	s.opt.Record.wipe()
}

// leafFor is the CPUID leaf that QEMU must see when it makes a VM; nil if that does not
// matter, or cannot be changed.
func (s *supervisor) leafFor(vmType uint64) *trap.CPUID {
	if !s.confidential || vmType == vmTDX {
		return nil
	}
	return s.processor()
}

// free makes sure that no thread is attached any more: QEMU took a path on which it does
// not ask the processor.
func (s *supervisor) free() bool {
	if s.tracer.Busy() {
		s.tracer.Release()
		return false
	}
	return true
}

// leafMemoryEncryption is CPUID Fn8000_001F, "Encrypted memory capabilities"
// (AMD, APM volume 3, appendix E.4.17).
const leafMemoryEncryption = 0x8000001F

// processor is that leaf as QEMU sees it: SME, SEV, SEV-ES and SEV-SNP, 509
// guests, the first ASID without SEV-ES being 1.
func (s *supervisor) processor() *trap.CPUID {
	if !s.trapsCPUID {
		return nil
	}
	return &trap.CPUID{Leaf: leafMemoryEncryption, A: 0x1001f, B: s.cbit | swtee.ReducedPhysBits<<6, C: 509, D: 1}
}

// handle answers one of QEMU's calls.
func (s *supervisor) handle(c *trap.Call) {
	if c.Nr != unix.SYS_IOCTL {
		s.open(c)
		return
	}
	request, arg := uint32(c.Args[1]), c.Args[2]
	if c.TID == s.again && request != kvmCreateVM {
		s.again = 0
	}
	switch request {
	case kvmMemoryEncryptOp:
		s.answer(c, func() (int64, error) { return 0, s.encryptOp(c, arg) })
	case sevIssueCmd:
		s.issue(c, arg)
	case kvmCreateGuestMemFD:
		s.createGuestMemory(c, arg)
	case kvmGetDeviceAttr, kvmHasDeviceAttr:
		s.deviceAttr(c, request, arg)
	default:
		if s.kvm != nil {
			s.fakeIoctl(c, request, arg)
		} else {
			s.realIoctl(c, request, arg)
		}
	}
}

// answer ends a call with the result of a function.
func (s *supervisor) answer(c *trap.Call, f func() (int64, error)) {
	v, err := f()
	if err != nil {
		c.Fail(swtee.Errno(err))
		return
	}
	c.Return(v)
}

// open gives QEMU files in place of devices that need not exist.
func (s *supervisor) open(c *trap.Call) {
	path, flags := c.Args[0], c.Args[1]
	if c.Nr == unix.SYS_OPENAT {
		path, flags = c.Args[1], c.Args[2]
	}
	name, err := c.ReadString(path)
	switch {
	case err != nil:
		c.Continue() // the kernel fails in the same way
	case name == "/dev/sev":
		s.returnMemFD(c, "sev", 0, flags)
	case name == "/dev/kvm" && s.kvm != nil:
		s.returnMemFD(c, "kvm", 0, flags)
	default:
		c.Continue()
	}
}

// memFDPrefix marks files that take a device's place; /proc shows it.
const memFDPrefix = "swtee:"

// returnMemFD answers with a new file in memory.
func (s *supervisor) returnMemFD(c *trap.Call, name string, size int64, flags uint64) {
	fd, err := unix.MemfdCreate(memFDPrefix+name, unix.MFD_CLOEXEC)
	if err != nil {
		s.log.Error("no file to stand for a device", "err", err)
		c.Fail(unix.ENFILE)
		return
	}
	defer unix.Close(fd)
	if size > 0 {
		if err := unix.Ftruncate(fd, size); err != nil {
			c.Fail(unix.ENOMEM)
			return
		}
	}
	c.ReturnFile(fd, flags&unix.O_CLOEXEC != 0)
}

// fileName is the name in /proc of one of the program's descriptors.
func fileName(c *trap.Call) string {
	name, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", c.TID, int32(c.Args[0])))
	return strings.TrimSuffix(strings.TrimPrefix(name, "/memfd:"), " (deleted)")
}

// vcpuOf is the number of the vCPU that a call is about: KVM and the fake one
// write it into the file's name.
func vcpuOf(name string) (int, bool) {
	_, number, ok := strings.Cut(name, "kvm-vcpu:")
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(number)
	return n, err == nil
}

// realIoctl watches QEMU's calls to a real KVM.
func (s *supervisor) realIoctl(c *trap.Call, request uint32, arg uint64) {
	switch request {
	case kvmCheckExtension:
		if v, ok := capabilities[arg]; ok {
			c.Return(v)
			return
		}
	case kvmCreateVM:
		if c.TID == s.again && arg == vmDefault {
			break
		}
		s.newVM(arg)
		// KVM has no such VM type, and QEMU must see the processor's.
		leaf := s.leafFor(arg)
		if leaf == nil && arg == vmDefault {
			break
		}
		if !s.free() {
			c.Fail(unix.EINTR) // QEMU tries again
			return
		}
		s.again = c.TID
		s.tracer.ArmAgain(c, leaf, func(r *unix.PtraceRegs) { r.Rdx = vmDefault })
		return
	case kvmSetCPUID2:
		s.hideEncryption(c, arg)
	case kvmGetCPUID2:
		if n, ok := vcpuOf(fileName(c)); ok && s.cpuids[n] != nil {
			s.answer(c, func() (int64, error) { return 0, writeList(c, arg, s.cpuids[n], cpuidEntrySize, 8) })
			return
		}
	case kvmSetRegs, kvmSetSregs, kvmSetSregs2, kvmSetXCRs, kvmSetMSRs, kvmSetDebugRegs:
		if n, ok := vcpuOf(fileName(c)); ok {
			s.recordRegisters(c, n, request, arg)
		}
	case kvmSetUserMemoryRegion, kvmSetUserMemoryRegion2:
		s.recordSlot(c, arg)
	}
	c.Continue()
}

// hideEncryption keeps leaf 0x8000001F from a guest whose memory is not
// encrypted; QEMU gets back what it gave (KVM_GET_CPUID2).
func (s *supervisor) hideEncryption(c *trap.Call, arg uint64) {
	b, err := readList(c, arg, cpuidEntrySize, 8)
	if err != nil || !s.confidential {
		return
	}
	if n, ok := vcpuOf(fileName(c)); ok {
		s.cpuids[n] = b
	}
	for i := 0; i+cpuidEntrySize <= len(b); i += cpuidEntrySize {
		if le.Uint32(b[i:]) == leafMemoryEncryption {
			if err := c.Write(arg+8+uint64(i)+12, make([]byte, 16)); err != nil {
				s.log.Warn("CPUID of a vCPU", "err", err)
			}
		}
	}
}

// createGuestMemory gives QEMU ordinary memory in place of a guest_memfd.
func (s *supervisor) createGuestMemory(c *trap.Call, arg uint64) {
	b, err := c.Read(arg, 16)
	if err != nil {
		c.Fail(unix.EFAULT)
		return
	}
	if err := s.fw.Run(swtee.CmdCreateGuestMemory, func() error { return nil }); err != nil {
		c.Fail(swtee.Errno(err))
		return
	}
	s.returnMemFD(c, "guest-memory", int64(le.Uint64(b)), unix.O_CLOEXEC)
}

// deviceAttr answers for attributes of KVM that confidential guests need.
func (s *supervisor) deviceAttr(c *trap.Call, request uint32, arg uint64) {
	b, err := c.Read(arg, 24)
	if err != nil {
		c.Fail(unix.EFAULT)
		return
	}
	group, attr, addr := le.Uint32(b[4:]), le.Uint64(b[8:]), le.Uint64(b[16:])
	var value uint64
	switch {
	case group == groupSEV && attr == attrVMSAFeature:
		value = vmsaFeatures
	case group == groupSystem && attr == 0 && s.kvm != nil: // KVM_X86_XCOMP_GUEST_SUPP
		value = guestXCR0
	case s.kvm != nil:
		c.Fail(unix.ENXIO)
		return
	default:
		c.Continue()
		return
	}
	if request == kvmGetDeviceAttr {
		if err := c.Write(addr, le.AppendUint64(nil, value)); err != nil {
			c.Fail(unix.EFAULT)
			return
		}
	}
	c.Return(0)
}

// vmsaFeatures are the sev_features that a guest may ask for: SNP active,
// DebugSwap, SecureTsc (AMD, APM volume 2, appendix B, VMSA offset 3B0h).
const vmsaFeatures = 1 | 1<<5 | 1<<9
