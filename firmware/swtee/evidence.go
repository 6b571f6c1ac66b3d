package swtee

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
	"github.com/vmlatch/vmlatch/firmware/swtee/attest"
	"github.com/vmlatch/vmlatch/firmware/tdx/attr"
	"github.com/vmlatch/vmlatch/firmware/tdx/ccel"
	"github.com/vmlatch/vmlatch/firmware/tdx/quote"
)

// Requests of a running guest: a report (SNP ABI, MSG_REPORT_REQ), a quote (GHCI,
// TDG.VP.VMCALL<GetQuote>), the extension of a register (TDX ABI, TDG.MR.RTMR.EXTEND).
const (
	CmdSNPGuestRequest Command = "SNP_GUEST_REQUEST"
	CmdTDXGetQuote     Command = "TDX_GET_QUOTE"
	CmdTDXExtend       Command = "TDX_RTMR_EXTEND"
)

// Condition is a state of the platform that its evidence shows. It is a fault of the commands that
// make evidence.
type Condition string

// Conditions.
const (
	TCBBehind Condition = "tcb-behind" // the firmware should have been updated
	Masked    Condition = "masked"     // the host keeps the chip's ID back
	ByVLEK    Condition = "vlek"       // a provider's key signs
	NoService Condition = "no-service" // the host has no quoting service
)

// conditions are what commands can be asked for.
var conditions = map[Command][]Condition{
	CmdSNPGuestRequest: {TCBBehind, Masked, ByVLEK},
	CmdTDXGetQuote:     {TCBBehind, NoService},
}

// in reports whether a condition was requested for this call of a command.
func (f *Firmware) in(cmd Command, c Condition) bool {
	n := f.counts[cmd]
	return slices.ContainsFunc(f.faults, func(fault Fault) bool { return fault.hits(cmd, n) && fault.Condition == c })
}

// VMPLs is the number of privilege levels of a guest.
const VMPLs = 4

// ResponseStatus is the status in the answer to a guest's message that the firmware received and
// did not fulfil (SNP ABI, table 25, MSG_REPORT_RSP). The guest's driver goes on.
type ResponseStatus uint32

// Statuses of responses.
const (
	ResponseInvalidParam ResponseStatus = 0x16
	ResponseInvalidKey   ResponseStatus = 0x27
)

func (s ResponseStatus) Error() string { return fmt.Sprintf("the response has status %#x", uint32(s)) }

// errNoKeys is the status of a platform whose keys cannot be read.
func errNoKeys(err error) error { return refuse(sev.StatusHardwarePlatform, "%v", err) }

// Report is an attestation report over 64 bytes of the guest's (SNP ABI, chapter 7.3).
func (g *SNPGuest) Report(data [64]byte, vmpl uint32) (b []byte, err error) {
	err = g.fw.do(CmdSNPGuestRequest, func() error {
		if err := g.require(StateRunning, CmdSNPGuestRequest); err != nil {
			return err
		}
		if vmpl >= VMPLs {
			return refuse(ResponseInvalidParam, "VMPL %d, at most %d", vmpl, VMPLs-1)
		}
		amd, err := g.fw.AMD()
		if err != nil {
			return errNoKeys(err)
		}
		r := g.claims
		r.VMPL, r.ReportData = vmpl, data
		r.Current, r.Committed = FirmwareBuild(), FirmwareBuild()
		how := attest.How{Version: cmp.Or(g.fw.ReportVersion, attest.ReportVersion)}
		how.Masked = g.fw.in(CmdSNPGuestRequest, Masked)
		switch {
		case g.fw.in(CmdSNPGuestRequest, ByVLEK):
			how.Key = attest.VLEK
		case g.vcekDisabled:
			return refuse(ResponseInvalidKey, "the launch disabled the chip's key, and there is no provider's")
		case g.fw.in(CmdSNPGuestRequest, TCBBehind):
			how.Key = attest.OldVCEK
		}
		b, err = amd.Report(r, how)
		return err
	})
	return b, err
}

// claim collects what the launch decides of a report.
func (g *SNPGuest) claim(in SNPFinish) error {
	r := &g.claims
	r.Policy, r.Measurement, r.HostData = sev.SNPPolicy(g.policy), [48]byte(g.digest), in.HostData
	_, _ = rand.Read(r.ReportID[:]) // never fails (crypto/rand)
	for i := range r.ReportIDMA {   // there is no migration agent
		r.ReportIDMA[i] = 0xff
	}
	g.vcekDisabled = in.VCEKDisabled
	if in.IDBlock == nil {
		return nil
	}
	id, err := sev.ParseIDBlock(in.IDBlock)
	if err != nil {
		return err
	}
	keys, err := sev.VerifyIDAuth(id, in.IDAuth, in.AuthorKey)
	if err != nil {
		return err
	}
	r.FamilyID, r.ImageID, r.GuestSVN = id.FamilyID, id.ImageID, id.SVN
	if r.IDKeyDigest, err = sev.KeyDigest(keys.ID); err != nil || keys.Author == nil {
		return err
	}
	r.SignerInfo = report.SignerInfo(0, true, false)
	r.AuthorKey, err = sev.KeyDigest(keys.Author)
	return err
}

// registers is the number of those of a trust domain that are extended while it runs.
const registers = 4

// Quote is a quote over 64 bytes of the guest's. Without a quoting service it is empty: the guest's
// driver does not look at the status.
func (t *TD) Quote(data [64]byte) (b []byte, err error) {
	err = t.fw.do(CmdTDXGetQuote, func() error {
		if err := t.requireFinal(CmdTDXGetQuote); err != nil {
			return err
		}
		if t.fw.in(CmdTDXGetQuote, NoService) {
			return nil
		}
		intel, err := t.fw.Intel()
		if err != nil {
			return errNoKeys(err)
		}
		body := quote.Body{
			Attributes: attr.Attributes(t.params.Attributes), MRTD: *t.sum, MRConfigID: t.params.MRConfigID,
			MROwner: t.params.MROwner, MROwnerConfig: t.params.MROwnerConfig, RTMR: t.rtmr, ReportData: data,
		}
		binary.LittleEndian.PutUint64(body.XFAM[:], t.params.XFAM)
		b, err = intel.Quote(body, attest.QuoteHow{
			Behind:  t.fw.in(CmdTDXGetQuote, TCBBehind),
			Version: cmp.Or(t.fw.QuoteVersion, attest.QuoteVersion),
		})
		return err
	})
	return b, err
}

// Extend extends a register, from 0 to 3, for the guest. The module lets it extend all.
func (t *TD) Extend(register int, digest [48]byte) error {
	return t.fw.do(CmdTDXExtend, func() error {
		if err := t.requireFinal(CmdTDXExtend); err != nil {
			return err
		}
		if register < 0 || register >= registers {
			return refuse(unix.EINVAL, "there is no RTMR%d", register)
		}
		t.rtmr[register] = ccel.Extend(t.rtmr[register], digest)
		return nil
	})
}

// Measure extends a register in the place of firmware and kernel, which find no TDX under TCG.
func (t *TD) Measure(register int, digest [48]byte) {
	t.fw.mu.Lock()
	defer t.fw.mu.Unlock()
	t.rtmr[register] = ccel.Extend(t.rtmr[register], digest)
}

// Registers are RTMR0 to RTMR3, MRTD, MRCONFIGID, MROWNER and MROWNERCONFIG, 48 bytes each.
func (t *TD) Registers() (b []byte) {
	t.fw.mu.Lock()
	defer t.fw.mu.Unlock()
	for _, r := range t.rtmr {
		b = append(b, r[:]...)
	}
	p := &t.params
	if t.sum == nil {
		return nil
	}
	return slices.Concat(b, t.sum[:], p.MRConfigID[:], p.MROwner[:], p.MROwnerConfig[:])
}

// SetProfile says in the report as which firmware the registers were measured.
func (t *TD) SetProfile(name string) {
	t.fw.WithReport(func(r *Report) {
		if r.Launch != nil && r.Launch.TD != nil {
			r.Launch.TD.RTMRProfile = name
		}
	})
}

func (t *TD) requireFinal(cmd Command) error {
	if t.resets != t.fw.resets {
		return refuse(unix.EIO, "%v", errReset)
	}
	if t.sum == nil {
		return refuse(unix.EINVAL, "%s before the domain was finalized", cmd)
	}
	return nil
}
