package tee

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/nearest"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/tdx/attr"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/plan"
)

// tdx is Intel TDX.
type tdx struct{ base }

// tdxKeys are the keys of [confidential] for TDX.
type tdxKeys struct {
	MRConfigID    string `toml:"mrconfigid"`    // 48 bytes in hex, as the next two
	MROwner       string `toml:"mrowner"`       //
	MROwnerConfig string `toml:"mrownerconfig"` //
	QuoteSocket   string `toml:"quote-socket"`  // of the quote service: a path, or vsock:CID:PORT
	ForTDX        Only   `toml:"tdx"`
}

// ids are the values that an owner binds to a launch and finds in its quotes.
func (k *tdxKeys) ids() map[string]string {
	return map[string]string{"mrconfigid": k.MRConfigID, "mrowner": k.MROwner, "mrownerconfig": k.MROwnerConfig}
}

func (tdx) keys(c *Confidential) []key {
	return []key{
		policyKey(c), textKey("mrconfigid", c.MRConfigID), textKey("mrowner", c.MROwner),
		textKey("mrownerconfig", c.MROwnerConfig), quoteKey(c),
	}
}

func quoteKey(c *Confidential) key {
	c.QuoteSocket = strings.TrimPrefix(c.QuoteSocket, "unix:")
	if scheme(c.QuoteSocket) != "" {
		return textKey("quote-socket", c.QuoteSocket)
	}
	return pathKey("quote-socket", &c.QuoteSocket)
}

func (tdx) only(c *Confidential) *Only { return &c.ForTDX }

// tdxGuest is QEMU's object (qapi/qom.json, TdxGuestProperties).
func tdxGuest() plan.Object { return plan.Object{Type: "tdx-guest", Since: "10.1"} }

func (tdx) traits() plan.Traits {
	return plan.Traits{
		Name: host.TDX, Object: tdxGuest(), Feature: "intel-tdx", Vendor: "Intel", Pool: "tdx",
		Confidential: true, Attested: true, KernelLog: true, Private: true, Registers: true, Models: []string{"host"},
		IRQChip:  "split",
		Covers:   []string{"attributes of the trust domain (in quotes)"},
		KernelBy: "by the firmware, in RTMR1 and RTMR2",
	}
}

func (tdx) hasVendor(h *host.Report) bool { return h.TDX != nil }

// tdAllowed are those that QEMU lets a guest have (QEMU, docs/system/i386/tdx.rst).
const tdAllowed = attr.Debug | attr.SEPTVEDisable | attr.PKS | attr.Perfmon

func attributesText(a attr.Attributes) string {
	return fmt.Sprintf("%#x (%s)", uint64(a), strings.Join((a&tdAllowed).Words(), ","))
}

// tdxPolicy reads a policy's words or number.
func tdxPolicy(words []string) (attr.Attributes, error) {
	if len(words) == 0 {
		return attr.SEPTVEDisable, nil
	}
	if n, err := strconv.ParseUint(words[0], 0, 64); err == nil && len(words) == 1 {
		return attr.Attributes(n), nil
	}
	var a attr.Attributes
	bits := map[string]attr.Attributes{}
	for _, n := range attr.All() {
		if n.Bit&tdAllowed != 0 {
			bits[n.Name] = n.Bit
		}
	}
	for _, w := range words {
		bit, ok := bits[w]
		if !ok {
			names := append(tdAllowed.Words(), "a number")
			return 0, fmt.Errorf("attributes: %w", nearest.Unknown("word", w, names))
		}
		a |= bit
	}
	return a, nil
}

func (tdx) complete(g *Guest) error {
	if _, err := tdxPolicy(g.Confidential.Policy); err != nil {
		return g.File.Errorf("confidential.policy", "%v", err)
	}
	for key, text := range g.Confidential.ids() {
		if _, err := hexBytes(text, 48); err != nil {
			return g.File.Errorf("confidential."+key, "%v", err)
		}
	}
	if err := g.confidential(); err != nil {
		return err
	}
	if done, err := g.latchEvidence(); done {
		return err
	}
	return g.latchNothing("TDX shows no measurement while the guest is paused: only quotes from inside it tell")
}

func (tdx) lacks(img *ovmf.Image) string {
	return img.AcceptsTDX()
}

func (tdx) build(g *Guest, b *plan.Builder) error {
	attributes, err := tdxPolicy(g.Confidential.Policy)
	if err != nil {
		return err
	}
	props := map[string]any{"attributes": uint64(attributes)}
	for key, text := range g.Confidential.ids() {
		raw, err := hexBytes(text, 48)
		if err != nil {
			return err
		}
		if raw != nil {
			props[key] = base64.StdEncoding.EncodeToString(raw)
		}
	}
	if text := g.Confidential.QuoteSocket; text != "" {
		q, err := parseQuoteService(text)
		if err != nil {
			return g.File.Errorf("confidential.quote-socket", "%v", err)
		}
		props["quote-generation-socket"] = q.address()
	}
	// The guest sees the host's timers but this one, which firmware would list in
	// tables that are measured.
	if b.Facts.Info.HasMachine("hpet") {
		b.Machine.SetBool("hpet", false)
	}
	b.Choose("attributes", attributesText(attributes), g.File.From("confidential.policy"))
	return b.Protect(tdxGuest(), props)
}

func isTDX(s *Subject) bool { return s.Traits().Name == host.TDX }

func (tdx) checks() []Check {
	return append(tdxSpecChecks(), tdxHostChecks()...)
}

func tdxSpecChecks() []Check {
	return []Check{
		{
			ID:       "tdx-attributes",
			Severity: Refuse,
			Key:      "confidential.policy",
			When:     isTDX,
			Cause:    "the attributes let the host look in or confuse the guest, or QEMU does not take them",
			Fix:      `use "sept-ve-disable"; of the others Linux 6.16 allows none`,
			Source:   "QEMU, docs/system/i386/tdx.rst; nova 0x10000000",
			Look: func(s *Subject) (Verdict, string) {
				a, _ := tdxPolicy(s.Confidential.Policy)
				switch unknown := a &^ tdAllowed; {
				case a&attr.Debug != 0:
					return Failed, "debug: the host could read the guest's memory"
				case a&attr.SEPTVEDisable == 0:
					return Failed, "lacks sept-ve-disable: by taking pages away the host could run" +
						" the guest's exception handlers"
				default:
					return Verify(unknown == 0, "%#x: these bits are not for guests", uint64(unknown))
				}
			},
		},
		{
			ID:       "tpm-tdx-rtmr2",
			Severity: Refuse,
			OfSpec:   true,
			Key:      "tpm",
			When:     func(s *Subject) bool { return isTDX(s) && s.TPM.On() },
			Cause: "Linux measures its command line and initrd into a TPM where there is one," +
				" and into RTMR2 only where there is none: a policy could not see them",
			Fix:    "leave [tpm] out",
			Source: "Linux, drivers/firmware/efi/libstub/efi-stub-helper.c, efi_measure_tagged_event",
			Look:   func(*Subject) (Verdict, string) { return Failed, "" },
		},
		{
			ID:       "tdx-cpu-host",
			Severity: Refuse,
			Key:      "cpu",
			When:     isTDX,
			Cause:    "TDX guests have the host's CPU, as far as the TDX module allows",
			Fix:      `write cpu = "host", or leave cpu out`,
			Source:   "QEMU, docs/system/i386/tdx.rst",
			Look: func(s *Subject) (Verdict, string) {
				m := s.Model()
				return Verify(m == "" || m == "host", "%q: must be host", m)
			},
		},
		{
			ID:       "tdx-hugepages",
			Severity: Warn,
			Key:      "memory-backend.hugepages",
			When:     isTDX,
			Cause:    "huge pages gain nothing: private memory comes in pages of 4 KiB",
			Fix:      "leave hugepages out",
			Source:   "nova, TDX spec; canonical/tdx#118",
			Look:     func(s *Subject) (Verdict, string) { return Verify(s.Backend.HugePages == 0, "") },
		},
		{
			ID:       "tdx-boot-disk",
			Severity: Refuse,
			Key:      "device",
			When:     isTDX,
			Cause:    "TDX firmware has no driver for SCSI disks, so the guest could not boot from one",
			Fix:      "use [[disk]], which is virtio-blk",
			Source:   "nova, TDX spec",
			Look: Without(
				`scsi-(hd|cd|block|generic)|(virtio|vhost|vhost-user)-scsi.*|pvscsi|megasas.*|mptsas.*|lsi.*|` +
					`am53c974|dc390|.*-scsi`,
			),
		},
	}
}

func tdxHostChecks() []Check {
	return []Check{
		{
			ID:       "tdx-kernel",
			Severity: Refuse,
			Stage:    HostStage,
			When:     OnHardware(isTDX),
			Cause:    "TDX guests need Linux 6.16 or newer on the host",
			Fix:      newerKernel,
			Source:   "libvirt 11.6 notes; canonical/tdx",
			Look: func(s *Subject) (Verdict, string) {
				return Verify(s.Facts.Host.KernelAtLeast(6, 16), "%s", s.Facts.Host.Kernel)
			},
		},
		{
			ID:       "tdx-module",
			Severity: Refuse,
			Stage:    HostStage,
			When:     OnHardware(isTDX),
			Cause:    "the TDX module did not start",
			Fix:      "the kernel's log says why (dmesg, lines with tdx)",
			Source:   "Linux, arch/x86/virt/vmx/tdx",
			Look: func(s *Subject) (Verdict, string) {
				return Answered(s.Facts.Host.TDX.Initialized, host.Yes, "")
			},
		},
		{
			ID:       "tdx-quote-service",
			Severity: Warn,
			Stage:    HostStage,
			Key:      "confidential.quote-socket",
			When:     OnHardware(isTDX),
			Cause:    "the guest cannot get quotes, which alone prove what it is",
			Fix: `run Intel's quote generation service, and name where it listens: quote-socket = "vsock:2:4050", or` +
				" the path of its socket, which this user must be able to write to",
			Source: "QEMU, docs/system/i386/tdx.rst; canonical/tdx",
			Look: func(s *Subject) (Verdict, string) {
				if s.Confidential.QuoteSocket == "" {
					return Failed, "no quote-socket is named"
				}
				q, err := parseQuoteService(s.Confidential.QuoteSocket)
				if err != nil {
					return Failed, err.Error()
				}
				return q.reach()
			},
		},
		{
			ID:       "machine-pinned",
			Severity: Warn,
			Stage:    HostStage,
			Key:      "machine",
			When:     func(s *Subject) bool { return isTDX(s) && s.Facts.Info != nil },
			Cause: "the machine type has no version: another QEMU builds other tables," +
				" which the guest's firmware measures into RTMR0",
			Fix:    "write the version into machine",
			Source: "near/mpc#2672; dstack#340",
			Look: func(s *Subject) (Verdict, string) {
				full, alias := s.Facts.Info.Machines[s.Machine]
				return Verify(!alias, "%s is %s here", s.Machine, full)
			},
		},
		{
			ID:       "tdx-machine",
			Severity: Default,
			Stage:    PlanStage,
			When:     isTDX,
			Cause:    "the machine has a device that TDX guests cannot have",
			Fix:      Defect,
			Source:   "QEMU, docs/system/i386/tdx.rst; canonical/tdx",
			Look: func(s *Subject) (Verdict, string) {
				pic, hpet := s.Options.Machine("pic"), s.Options.Machine("hpet")
				return Verify(pic != "on" && (hpet == "off" || !s.Facts.Info.HasMachine("hpet")), "pic=%s, hpet=%s",
					pic, hpet)
			},
		},
	}
}
