package swtee

import (
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/sev"
)

// Command names a command of the emulated platform, in faults and reports.
type Command string

// Commands of the platform: SEV_ISSUE_CMD (Linux, include/uapi/linux/psp-sev.h).
const (
	CmdPlatformStatus    Command = "PLATFORM_STATUS"
	CmdPDHCertExport     Command = "PDH_CERT_EXPORT"
	CmdGetID             Command = "GET_ID"
	CmdSNPPlatformStatus Command = "SNP_PLATFORM_STATUS"
)

// Commands of one guest: KVM_MEMORY_ENCRYPT_OP (Linux, arch/x86/include/uapi/asm/kvm.h).
const (
	CmdInit              Command = "INIT"
	CmdESInit            Command = "ES_INIT"
	CmdInit2             Command = "INIT2"
	CmdLaunchStart       Command = "LAUNCH_START"
	CmdLaunchUpdateData  Command = "LAUNCH_UPDATE_DATA"
	CmdLaunchUpdateVMSA  Command = "LAUNCH_UPDATE_VMSA"
	CmdLaunchMeasure     Command = "LAUNCH_MEASURE"
	CmdLaunchSecret      Command = "LAUNCH_SECRET"
	CmdLaunchFinish      Command = "LAUNCH_FINISH"
	CmdGuestStatus       Command = "GUEST_STATUS"
	CmdAttestation       Command = "GET_ATTESTATION_REPORT"
	CmdSNPLaunchStart    Command = "SNP_LAUNCH_START"
	CmdSNPLaunchUpdate   Command = "SNP_LAUNCH_UPDATE"
	CmdSNPLaunchFinish   Command = "SNP_LAUNCH_FINISH"
	CmdTDXCapabilities   Command = "TDX_CAPABILITIES"
	CmdTDXInitVM         Command = "TDX_INIT_VM"
	CmdTDXInitVCPU       Command = "TDX_INIT_VCPU"
	CmdTDXInitMemRegion  Command = "TDX_INIT_MEM_REGION"
	CmdTDXFinalizeVM     Command = "TDX_FINALIZE_VM"
	CmdTDXGetCPUID       Command = "TDX_GET_CPUID"
	CmdCreateGuestMemory Command = "CREATE_GUEST_MEMFD"
)

var commands = []Command{
	CmdPlatformStatus, CmdPDHCertExport, CmdGetID, CmdSNPPlatformStatus,
	CmdInit, CmdESInit, CmdInit2, CmdLaunchStart, CmdLaunchUpdateData, CmdLaunchUpdateVMSA, CmdLaunchMeasure,
	CmdLaunchSecret, CmdLaunchFinish, CmdGuestStatus, CmdAttestation,
	CmdSNPLaunchStart, CmdSNPLaunchUpdate, CmdSNPLaunchFinish,
	CmdTDXCapabilities, CmdTDXInitVM, CmdTDXInitVCPU, CmdTDXInitMemRegion, CmdTDXFinalizeVM, CmdTDXGetCPUID,
	CmdCreateGuestMemory, CmdSNPGuestRequest, CmdTDXGetQuote, CmdTDXExtend,
}

// Firmware is the emulated firmware while it runs: a platform's keys, the faults that
// were requested, and the report of what it was told. Its commands run one after the
// other, as on a real secure processor.
type Firmware struct {
	*Platform
	// Changed, if set, is called with the report whenever a launch completes a notable
	// step. It must not keep the report.
	Changed func(*Report)
	// RecordPages puts every page into the report, which takes time: each page is also
	// hashed on its own.
	RecordPages bool
	// ReportVersion and QuoteVersion are those of the evidence; 0 for the usual ones.
	ReportVersion uint32
	QuoteVersion  uint16

	stop    chan struct{} // closed: all delays end
	once    sync.Once
	mu      sync.Mutex
	faults  []Fault
	counts  map[Command]int
	resets  int
	started bool // a guest was launched since the last reset
	report  Report
}

// NewFirmware starts the firmware of a platform.
func NewFirmware(p *Platform, faults ...Fault) *Firmware {
	return &Firmware{
		Platform: p, faults: faults, counts: map[Command]int{}, stop: make(chan struct{}),
		report: Report{
			Schema: ReportSchema, Emulated: true, Firmware: FirmwareBuild(),
			Commands: []CommandRecord{}, Pages: []Page{},
		},
	}
}

// do runs one command: it counts it, applies the requested faults, and records it.
func (f *Firmware) do(cmd Command, run func() error) error {
	f.delay(cmd)
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.fault(cmd)
	if err == nil {
		err = run()
	}
	f.record(cmd, err)
	return err
}

// Stop ends all delays, now and later.
func (f *Firmware) Stop() { f.once.Do(func() { close(f.stop) }) }

// delay counts the command and waits for its requested delay.
func (f *Firmware) delay(cmd Command) {
	f.mu.Lock()
	f.counts[cmd]++
	var d time.Duration
	for i := range f.faults {
		if f.faults[i].hits(cmd, f.counts[cmd]) {
			d += f.faults[i].Delay
		}
	}
	f.mu.Unlock()
	if d == 0 {
		return
	}
	select {
	case <-time.After(d):
	case <-f.stop:
	}
}

// BeginLaunch resets the report's launch and pages, because QEMU has made a VM: the first,
// or one that replaces another.
func (f *Firmware) BeginLaunch() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.report.Launch, f.report.Pages = nil, []Page{}
}

// fault applies the faults requested for this call of the command.
func (f *Firmware) fault(cmd Command) error {
	n := f.counts[cmd]
	for i := range f.faults {
		fault := &f.faults[i]
		if !fault.hits(cmd, n) {
			continue
		}
		if fault.Reset {
			f.resets++
			f.started = false
		}
		if fault.Err != nil {
			return refuse(fault.Err, "injected fault %q", fault)
		}
	}
	return nil
}

// Run runs a command that has no context of its own, such as one that only the kernel
// knows, with counting, faults and the report.
func (f *Firmware) Run(cmd Command, run func() error) error { return f.do(cmd, run) }

// PlatformState is the platform's state (SEV API, chapter 5.1.2, table 17).
type PlatformState uint8

// Platform states.
const (
	PlatformUninit  PlatformState = 0
	PlatformInit    PlatformState = 1
	PlatformWorking PlatformState = 2
)

// PlatformStatus is the answer to PLATFORM_STATUS (SEV API, chapter 5.7).
type PlatformStatus struct {
	sev.Build
	State  PlatformState
	Flags  uint32 // bit 0: externally owned; bit 8: SEV-ES is initialised
	Guests uint32
}

// Status answers PLATFORM_STATUS.
func (f *Firmware) Status() (s PlatformStatus, err error) {
	err = f.do(CmdPlatformStatus, func() error {
		s = PlatformStatus{Build: FirmwareBuild(), State: PlatformInit, Flags: 1 | 1<<8}
		switch {
		case f.resets > 0 && !f.started:
			s.State = PlatformUninit
		case f.started:
			s.State, s.Guests = PlatformWorking, 1
		}
		return nil
	})
	return s, err
}

// SNPBuild is the build number that SNP_PLATFORM_STATUS reports.
const SNPBuild = 24

// errReset is why commands of a guest fail after a reset.
var errReset = errors.New("the platform was reset, the guest's context is gone")

// context is common to all kinds of guests: the firmware, and how often it had been reset
// when the guest was made.
type context struct {
	fw     *Firmware
	resets int
}

func (f *Firmware) newContext() context {
	f.mu.Lock()
	defer f.mu.Unlock()
	return context{f, f.resets}
}

// alive fails once the platform has been reset.
func (c context) alive() error {
	if c.resets != c.fw.resets {
		return refuse(sev.StatusInvalidGuest, "%v", errReset)
	}
	return nil
}

// Errno returns the kernel's code in an error, EIO for one of the firmware's.
func Errno(err error) unix.Errno {
	var errno unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &errno):
		return errno
	}
	return unix.EIO
}

// Status returns the firmware's code in an error, StatusOK if it has no such code.
func Status(err error) sev.Status {
	var s sev.Status
	if errors.As(err, &s) {
		return s
	}
	return sev.StatusOK
}
