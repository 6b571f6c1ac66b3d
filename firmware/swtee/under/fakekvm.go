package under

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/swtee/internal/trap"
)

// fakeKVM answers for KVM without a kernel module: enough for a machine that is
// created, loaded and stays paused. It stores what QEMU sets, and returns it.
type fakeKVM struct {
	blobs map[string]map[byte][]byte // by file, then by number of the call that set it
	msrs  map[string]map[uint32]uint64
}

func newFakeKVM() *fakeKVM {
	return &fakeKVM{blobs: map[string]map[byte][]byte{}, msrs: map[string]map[uint32]uint64{}}
}

// Numbers of KVM's requests (Linux, include/uapi/linux/kvm.h).
const (
	nrGetAPIVersion        = 0x00
	nrCreateVM             = 0x01
	nrGetMSRIndexList      = 0x02
	nrCheckExtension       = 0x03
	nrGetVCPUMmapSize      = 0x04
	nrGetSupportedCPUID    = 0x05
	nrGetEmulatedCPUID     = 0x09
	nrGetMSRFeatureList    = 0x0a
	nrCreateVCPU           = 0x41
	nrRun                  = 0x80
	nrGetMSRs              = 0x88
	nrSetMSRs              = 0x89
	nrSetCPUID2            = 0x90
	nrGetCPUID2            = 0x91
	nrGetMCECapSupported   = 0x9d
	nrGetTSCKHzOrEnableCap = 0xa3
	nrCreateDevice         = 0xe0
)

// setterOf maps a request that gets something to the one that sets it.
var setterOf = map[byte]byte{
	0x81: 0x82, // REGS
	0x83: 0x84, // SREGS
	0x8c: 0x8d, // FPU
	0x8e: 0x8f, // LAPIC
	0x98: 0x99, // MP_STATE
	0x9f: 0xa0, // VCPU_EVENTS
	0xa1: 0xa2, // DEBUGREGS
	0xa4: 0xa5, // XSAVE
	0xa6: 0xa7, // XCRS
	0xcc: 0xcd, // SREGS2
	0x7c: 0x7b, // CLOCK
	0xcf: 0xa5, // XSAVE2
}

const (
	kvmAPIVersion = 12
	vcpuMmapSize  = 3 * 4096 // struct kvm_run, PIO data, coalesced MMIO
	tscKHz        = 2_500_000
	mceCaps       = 0x100010a // ten banks, MCG_CTL_P, MCG_SER_P
	runPace       = 20 * time.Millisecond
)

// fakeIoctl answers one KVM ioctl.
func (s *supervisor) fakeIoctl(c *trap.Call, request uint32, arg uint64) {
	name := fileName(c)
	file, ok := strings.CutPrefix(name, memFDPrefix)
	if !ok || !strings.HasPrefix(file, "kvm") {
		c.Continue() // another device's request with KVM's type byte
		return
	}
	switch request {
	case kvmSetRegs, kvmSetSregs, kvmSetSregs2, kvmSetXCRs, kvmSetMSRs, kvmSetDebugRegs:
		if n, ok := vcpuOf(name); ok {
			s.recordRegisters(c, n, request, arg)
		}
	case kvmSetUserMemoryRegion, kvmSetUserMemoryRegion2:
		s.recordSlot(c, arg)
	}
	switch nr := byte(request); nr {
	case nrCreateVM:
		s.fakeCreateVM(c, arg)
	case nrCreateVCPU:
		s.vcpu(int(arg))
		s.returnMemFD(c, fmt.Sprintf("kvm-vcpu:%d", arg), vcpuMmapSize, unix.O_CLOEXEC)
	case nrRun:
		// The guest makes no progress. The call ends soon, so that QEMU notices what it
		// is asked to do meanwhile.
		time.AfterFunc(runPace, func() { c.Fail(unix.EINTR) })
	case nrCheckExtension:
		if v, ok := capabilities[arg]; ok {
			c.Return(v)
			return
		}
		c.Return(kvmCapabilities[arg])
	default:
		s.answer(c, func() (int64, error) { return s.kvm.ioctl(c, file, request, arg) })
	}
}

func (s *supervisor) fakeCreateVM(c *trap.Call, vmType uint64) {
	s.newVM(vmType)
	create := func() { s.returnMemFD(c, "kvm-vm", 0, unix.O_CLOEXEC) }
	leaf := s.leafFor(vmType)
	if leaf == nil || !s.free() {
		create()
		return
	}
	s.tracer.Arm(c, leaf, create)
}

// ioctl answers calls that only set or get something.
func (k *fakeKVM) ioctl(c *trap.Call, file string, request uint32, arg uint64) (int64, error) {
	nr, direction, size := byte(request), request>>30, int(request>>16)&0x3fff
	switch nr {
	case nrGetAPIVersion:
		return kvmAPIVersion, nil
	case nrGetVCPUMmapSize:
		return vcpuMmapSize, nil
	case nrGetMSRIndexList:
		return 0, writeList(c, arg, uint32s(savedMSRs), 4, 4)
	case nrGetMSRFeatureList:
		return 0, writeList(c, arg, uint32s(featureMSRs), 4, 4)
	case nrGetSupportedCPUID:
		return 0, writeList(c, arg, supportedCPUID(), cpuidEntrySize, 8)
	case nrGetEmulatedCPUID:
		return 0, writeList(c, arg, nil, cpuidEntrySize, 8)
	case nrGetMSRs, nrSetMSRs:
		return k.moveMSRs(c, file, nr, arg)
	case nrSetCPUID2:
		b, err := readList(c, arg, cpuidEntrySize, 8)
		k.keep(file, nrSetCPUID2, b)
		return 0, err
	case nrGetCPUID2:
		return 0, writeList(c, arg, k.blobs[file][nrSetCPUID2], cpuidEntrySize, 8)
	case nrCreateDevice:
		return 0, unix.ENODEV
	case nrGetMCECapSupported:
		return 0, fault(c.Write(arg, le.AppendUint64(nil, mceCaps)))
	case nrGetTSCKHzOrEnableCap:
		if direction == 0 {
			return tscKHz, nil
		}
		return 0, nil
	}
	const out, in = 1, 2 // _IOC_WRITE: the program gives; _IOC_READ: it gets
	switch direction {
	case out:
		b, err := c.Read(arg, size)
		if err != nil {
			return 0, unix.EFAULT
		}
		k.keep(file, nr, b)
	case in:
		b := make([]byte, size)
		copy(b, k.blobs[file][setterOf[nr]])
		return 0, fault(c.Write(arg, b))
	}
	return 0, nil
}

func (k *fakeKVM) keep(file string, nr byte, b []byte) {
	if k.blobs[file] == nil {
		k.blobs[file] = map[byte][]byte{}
	}
	k.blobs[file][nr] = b
}

// moveMSRs sets or gets a list of MSRs and returns how many.
func (k *fakeKVM) moveMSRs(c *trap.Call, file string, nr byte, arg uint64) (int64, error) {
	b, err := readList(c, arg, 16, 8)
	if err != nil {
		return 0, err
	}
	msrs := k.msrs[file]
	if msrs == nil {
		msrs = map[uint32]uint64{}
		k.msrs[file] = msrs
	}
	for i := 0; i+16 <= len(b); i += 16 {
		if nr == nrSetMSRs {
			msrs[le.Uint32(b[i:])] = le.Uint64(b[i+8:])
		} else {
			le.PutUint64(b[i+8:], msrs[le.Uint32(b[i:])])
		}
	}
	if nr == nrGetMSRs {
		err = fault(c.Write(arg+8, b))
	}
	return int64(len(b) / 16), err
}

func uint32s(list []uint32) []byte {
	var b []byte
	for _, v := range list {
		b = le.AppendUint32(b, v)
	}
	return b
}
