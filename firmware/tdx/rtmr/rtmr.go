// Package rtmr predicts the run-time measurement registers of trust domains that boot a kernel
// directly: RTMR1 and RTMR2, by the events that firmware and the kernel's EFI stub extend.
//
// Sources: edk2, OvmfPkg/Library/GenericQemuLoadImageLib and SecurityPkg/Tcg/TdTcg2Dxe; Linux,
// drivers/firmware/efi/libstub (from 6.9 on it measures for a CC event log). The digests of
// kernel, load options and initrd were compared with those that OVMF 2026.08 and Linux 6.12 log.
package rtmr

import (
	"crypto/sha512"
	"fmt"
	"io"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/authenticode"
	"github.com/vmlatch/vmlatch/firmware/bzimage"
	"github.com/vmlatch/vmlatch/firmware/tdx/ccel"
)

// Profile is how a firmware measures. Versions differ.
type Profile struct {
	Name   string
	About  string
	suffix bool // initrd= stands behind the command line
}

// Profiles are those that are known, the newest first.
func Profiles() []Profile {
	return []Profile{
		{Name: "edk2-2026.08", About: "initrd= stands before the command line (compared with real logs)"},
		{Name: "edk2-2025.05", About: "initrd= stands behind the command line (from the sources)", suffix: true},
	}
}

// ProfileNamed finds a profile.
func ProfileNamed(name string) (Profile, error) {
	var names []string
	for _, p := range Profiles() {
		if p.Name == name {
			return p, nil
		}
		names = append(names, p.Name)
	}
	return Profile{}, fmt.Errorf("unknown firmware profile %q: must be %s", name, strings.Join(names, " or "))
}

// Boot is what a trust domain boots.
type Boot struct {
	Kernel  []byte   // the file
	Initrd  [48]byte // its SHA-384
	HasInit bool     // there is one
	Cmdline string

	Others []Other // for Explain: what the host may have loaded as the initrd
}

// Other is an initrd that is not the owner's, and how it differs.
type Other struct {
	Say    string
	Digest [48]byte
}

// HashInitrd returns the SHA-384 of an initrd.
func HashInitrd(initrd io.WriterTo) (sum [48]byte, err error) {
	h := sha512.New384()
	_, err = initrd.WriteTo(h)
	return [48]byte(h.Sum(nil)), err
}

// Event is a measurement, with what it is of.
type Event struct {
	Register int
	What     string
	Digest   [48]byte
}

// Names of events that an owner's files determine.
const (
	Kernel      = "kernel"
	LoadOptions = "command line"
	Initrd      = "initrd"
)

// Events lists what firmware and kernel measure into RTMR1 and RTMR2, in their order.
func (p Profile) Events(b *Boot) ([]Event, error) {
	h := sha512.New384()
	sum, err := authenticode.Sum(b.Kernel, h)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	text := func(s string) [48]byte { return sha512.Sum384([]byte(s)) }
	events := []Event{
		{1, Kernel, [48]byte(sum)},
		{1, "start of the kernel", text("Calling EFI Application from Boot Option")},
		{1, "separator", text("\x00\x00\x00\x00")},
		{1, "end of the firmware's services", text("Exit Boot Services Invocation")},
		{1, "their end succeeded", text("Exit Boot Services Returned with Success")},
		{2, LoadOptions, sha512.Sum384(bzimage.LoadOptions(b.Cmdline, b.HasInit, p.suffix))},
	}
	if b.HasInit {
		events = append(events, Event{2, Initrd, b.Initrd})
	}
	return events, nil
}

// Predict works out RTMR1 and RTMR2.
func (p Profile) Predict(b *Boot) (rtmr1, rtmr2 [48]byte, err error) {
	events, err := p.Events(b)
	for _, e := range events {
		if e.Register == 1 {
			rtmr1 = ccel.Extend(rtmr1, e.Digest)
		} else {
			rtmr2 = ccel.Extend(rtmr2, e.Digest)
		}
	}
	return rtmr1, rtmr2, err
}

// Explain says which of the owner's files a boot did not have, by its event log: a sentence for
// each event that differs. The log must have been replayed against the quote.
func (p Profile) Explain(b *Boot, log *ccel.Log) ([]string, error) {
	want, err := p.Events(b)
	if err != nil {
		return nil, err
	}
	var out []string
	for register := 1; register <= 2; register++ {
		var got []ccel.Event
		for _, e := range log.Events {
			if e.Register == register {
				got = append(got, e)
			}
		}
		n := 0
		for _, e := range want {
			if e.Register != register {
				continue
			}
			switch {
			case n >= len(got):
				out = append(
					out,
					fmt.Sprintf("RTMR%d: the measurement of %q is missing%s", register, e.What, older(e.What)),
				)
			case got[n].Digest != e.Digest:
				out = append(out, fmt.Sprintf("RTMR%d: %s is not yours%s", register, e.What, b.was(e.What, &got[n])))
			}
			n++
		}
		for ; n < len(got); n++ {
			out = append(
				out,
				fmt.Sprintf("RTMR%d: measurement %d is one too many: %s", register, n+1, named(&got[n])),
			)
		}
	}
	return out, nil
}

// older explains a measurement that only newer kernels make.
func older(what string) string {
	if what == Kernel {
		return ""
	}
	return " (Linux measures it since 6.9)"
}

// was tells the command line of the boot, which its own event holds, or how the initrd differs.
func (b *Boot) was(what string, e *ccel.Event) string {
	if what == Initrd {
		for _, o := range b.Others {
			if o.Digest == e.Digest {
				return ": " + o.Say
			}
		}
	}
	if what != LoadOptions || !e.HashesData() || len(e.Data)%2 != 0 {
		return ""
	}
	var line []byte
	for i := 0; i < len(e.Data); i += 2 {
		line = append(line, e.Data[i])
	}
	return fmt.Sprintf(": it was %q", strings.TrimRight(string(line), "\x00"))
}

func named(e *ccel.Event) string {
	if e.HashesData() && len(e.Data) < 200 {
		return fmt.Sprintf("type %#x, %q", e.Type, e.Data)
	}
	return fmt.Sprintf("type %#x", e.Type)
}
