package host

import (
	"errors"
	"strconv"
	"time"

	"github.com/vmlatch/vmlatch/launcher/internal/vsock"
)

func (d *detector) intel() {
	if d.rep.CPU.Vendor != vendorIntel {
		return
	}
	d.tme()
	enabled := d.parameter("kvm_intel/parameters/tdx")
	t := &TDXHost{Enabled: enabled, Initialized: Unknown, QuoteSocket: d.quoteService()}
	known := d.root.exists("sys/module/kvm_intel/parameters/tdx")
	if known {
		d.rep.TDX = t
		log := d.kernelLog()
		// KVM clears the parameter when the module does not start.
		if enabled == Yes || reTDXInit().MatchString(log) {
			t.Initialized = Yes
		}
		t.Module = lastMatch(reTDXModule, log)
		if m := reTDXKeyIDs().FindStringSubmatch(log); m != nil {
			from, _ := strconv.Atoi(m[1])
			to, _ := strconv.Atoi(m[2])
			t.KeyIDs = max(0, to-from)
		} else if d.rep.TME != nil {
			t.KeyIDs = d.rep.TME.TDXKeyIDs
		}
	}
	d.tdxRow(known, enabled)
	d.mktmeRow()
}

// tdxRow tells what TDX lacks, in the order in which it fails.
func (d *detector) tdxRow(known bool, enabled Answer) {
	switch {
	case d.rep.KVM.Usable != Yes:
		d.add(TDX, No, d.rep.KVM.Why, d.rep.KVM.Fix)
	case !d.root.exists("sys/module/kvm_intel"):
		d.add(TDX, No, "the kernel module kvm_intel is not loaded", "modprobe kvm_intel tdx=1")
	case !known:
		d.add(TDX, No, "this kernel's kvm_intel does not know TDX", "Linux 6.16 or newer has it (CONFIG_KVM_INTEL_TDX)")
	case enabled == No:
		d.add(TDX, No, "kvm_intel runs without TDX (parameter tdx)",
			"enable TDX in the machine's setup and load kvm_intel with tdx=1; "+
				"the kernel's log says why it was refused (dmesg, lines with tdx)")
	case enabled == Unknown:
		d.add(TDX, Unknown, "kvm_intel's parameter tdx cannot be read", "")
	case reTDXFailed().MatchString(d.kernelLog()) && !reTDXInit().MatchString(d.kernelLog()):
		d.add(TDX, No, "the TDX module did not start (kernel's log: "+reTDXFailed().FindString(d.kernelLog())+")",
			"update the machine's setup and the TDX module; the kernel's log says more (dmesg, lines with tdx)")
	case d.lacksTDX():
		d.add(TDX, No, "KVM does not offer TDX guests, although its parameter says so (KVM_CAP_VM_TYPES)",
			"use a kernel and a kvm_intel that belong together; the kernel's log says what did not start")
	default:
		d.add(TDX, Yes, "", "")
	}
}

// lacksTDX reports whether KVM could be asked which guests it makes, and TDX's are not
// among them.
func (d *detector) lacksTDX() bool {
	types, err := d.root.vmTypes()
	return err == nil && types != 0 && types&(1<<vmTypeTDX) == 0
}

func (d *detector) mktmeRow() {
	const fix = "use TDX, which has keys of the same kind and an attestation"
	switch m := d.rep.TME; {
	case m == nil || m.MKTME == No:
		d.add(MKTME, No,
			"no key IDs for software: the processor has no MKTME, or the machine's setup leaves it off", fix)
	case m.KeyType == No:
		d.add(MKTME, No, "the kernel has no keys of type mktme; no released Linux has", fix)
	default: // the processor can, or does not say
		d.add(MKTME, Unknown,
			"no released QEMU takes MKTME keys: it takes a patched one, and a spec that names its object", fix)
	}
}

// quoteSocket is where Intel's quote generation service listens.
const quoteSocket = "var/run/tdx-qgs/qgs.socket"

// quoteService reports whether the quote generation service runs: by its socket, or on vsock,
// where it listens by default. A record knows of the socket alone.
func (d *detector) quoteService() Answer {
	switch {
	case d.root.exists(quoteSocket):
		return Yes
	case d.root.recorded() || !d.root.exists("dev/vsock"):
		return Unknown
	}
	const port = 4050
	switch err := vsock.Reach(vsock.Local, port, time.Second); {
	case err == nil:
		return Yes
	case errors.Is(err, vsock.ErrRefused):
		return No
	}
	return Unknown
}

// tme reads the MSRs of Intel's memory encryption (SDM volume 4; the key-ID
// fields: Intel's MKTME specification, tables 4-2 and 4-3).
func (d *detector) tme() {
	flagged := d.rep.CPU.TME
	if !flagged {
		return
	}
	t := &TME{Enabled: Unknown, MKTME: Unknown, KeyType: d.root.mktmeKeys()}
	d.rep.TME = t
	if v, err := d.root.msr(msrTMEActivate); err == nil {
		bits := v >> tmeKeyIDBits & tmeKeyIDBitsMask
		t.Enabled, t.MKTME = answer(v&tmeEnabled != 0), answer(v&tmeEnabled != 0 && bits > 0)
		t.KeyIDs = 1<<bits - 1
		t.TDXKeyIDs = 1<<(v>>tmeTDXKeyIDBits&tmeKeyIDBitsMask) - 1
		if p, err := d.root.msr(msrKeyIDPartitioning); err == nil {
			t.KeyIDs, t.TDXKeyIDs = int(uint32(p)), int(p>>32)
		}
		if t.KeyIDs == 0 {
			t.MKTME = No
		}
		return
	}
	log := d.kernelLog()
	if reTME().MatchString(log) {
		t.Enabled = Yes
	}
	if n := lastMatch(reMKTMEKeys, log); n != "" {
		t.KeyIDs, _ = strconv.Atoi(n)
		t.MKTME = answer(t.KeyIDs > 0)
	}
}
