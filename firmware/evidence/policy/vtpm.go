package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/bytesize"
	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/firstboot"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/firmware/tpm"
	"github.com/vmlatch/vmlatch/firmware/tpm/predict"
	"github.com/vmlatch/vmlatch/firmware/tpm/quote"
	"github.com/vmlatch/vmlatch/firmware/tpm/seal"
	"github.com/vmlatch/vmlatch/firmware/tpm/verify"
	"github.com/vmlatch/vmlatch/firmware/uefivar"
)

// HostTrustedSuffix ends the names of policies for guests whose hosts are trusted.
const HostTrustedSuffix = "-host-trusted"

// VTPM is what the TPM of a guest must say, whose host is trusted: the host has made it.
type VTPM struct {
	Keys     []string `toml:"keys"`     // files: attestation keys that the owner knows
	PCRs     []int    `toml:"pcrs"`     // registers that count
	Expected string   `toml:"expected"` // a table of their values, in the place of [guest]
	Vars     string   `toml:"vars"`     // the firmware's variables, where they are in a file of their own
	Memory   string   `toml:"memory"`
	QEMU     string   `toml:"qemu"` // version
}

// maxTPMFile bounds keys and tables, in bytes.
const maxTPMFile = 1 << 20

// kernelPCRs are what a kernel that QEMU loads, its command line and its initrd decide.
var kernelPCRs = []int{4, 7, 9}

func (f *File) checkVTPM() error {
	t := f.VTPM
	trusted := strings.HasSuffix(f.Name, HostTrustedSuffix)
	switch {
	case t == nil && trusted:
		return f.errorf(
			"vtpm",
			"is missing: the name ends in %s, which says that the host is trusted",
			HostTrustedSuffix,
		)
	case t == nil:
		return nil
	case f.Guest != nil && f.Guest.Config != "":
		return f.errorf("guest.config", "a plain guest gets its configuration from disks and tables, which no register"+
			" covers: leave it out")
	case !trusted:
		return f.errorf("name", "%q: must end in %s, as there is [vtpm]: the TPM is the host's, which could make its"+
			" quotes up", f.Name, HostTrustedSuffix)
	case f.SNP != nil || f.TDX != nil || f.SEV != nil || f.SEVES != nil:
		return f.errorf("vtpm", "no other technology may stand next to it: what is released here, a host can have")
	case len(t.Keys) == 0:
		return f.errorf("vtpm.keys", "is missing: files of latchkey tpm credential check --out")
	case t.Expected == "" && (f.Guest == nil || f.Guest.Kernel == ""):
		return f.errorf("vtpm.expected", "is missing, and [guest] has no kernel to work the registers out from")
	case t.Expected != "" && (t.Vars != "" || t.Memory != "" || t.QEMU != ""):
		return f.errorf("vtpm.expected", "takes the place of a prediction: leave vars, memory and qemu out")
	case t.Expected != "" && len(t.PCRs) == 0:
		return f.errorf("vtpm.pcrs", "is missing: which registers of the table count")
	}
	for _, n := range t.PCRs {
		if n < 0 || n >= predict.Registers {
			return f.errorf("vtpm.pcrs", "%d: must be 0 to %d", n, predict.Registers-1)
		}
	}
	return nil
}

// Registers is what a TPM's quote must be, and what is known of the boot.
type Registers struct {
	*verify.Policy
	Inputs     *predict.Inputs // nil: the values are from a table
	Prediction *predict.Prediction
	Holds      []string // conditions of the values, a sentence each
}

// Registers reads what the policy expects of a TPM.
func (f *File) Registers() (*Registers, error) {
	t := f.VTPM
	if t == nil {
		return nil, f.errorf("vtpm", "this policy has no such table: such guests get nothing")
	}
	r := &Registers{Policy: &verify.Policy{Registers: verify.Registers{
		Selection: tpm.Selection{Bank: eventlog.SHA256, PCRs: slices.Clone(t.PCRs)}, Values: map[int][]byte{},
	}}}
	if len(t.PCRs) == 0 {
		r.Selection.PCRs = kernelPCRs
	}
	slices.Sort(r.Selection.PCRs)
	r.Selection.PCRs = slices.Compact(r.Selection.PCRs)
	for _, name := range t.Keys {
		b, err := regular.Read(f.path(name), maxTPMFile)
		if err != nil {
			return nil, fmt.Errorf("%w: vtpm.keys: %w", ErrPolicy, err)
		}
		k, err := quote.ParseAK(b)
		if err != nil {
			return nil, f.errorf("vtpm.keys", "%s: %v", name, err)
		}
		r.Keys = append(r.Keys, k)
	}
	from := f.predicted
	if t.Expected != "" {
		from = f.kept
	}
	if err := from(r); err != nil {
		return nil, err
	}
	secureBoot := r.Prediction != nil && r.Prediction.SecureBoot
	if err := seal.CheckSelection(r.Selection, secureBoot); err != nil {
		return nil, f.errorf("vtpm.pcrs", "%v", err)
	}
	if !slices.ContainsFunc(r.Selection.PCRs, func(n int) bool { return n == 4 || n == 9 || n == 11 }) {
		return nil, f.errorf(
			"vtpm.pcrs",
			"none of them says what was booted: 4 and 9 do, or 11 of a unified kernel image",
		)
	}
	return r, nil
}

// kept takes the values from a table.
func (f *File) kept(r *Registers) error {
	b, err := regular.Read(f.path(f.VTPM.Expected), maxTPMFile)
	if err != nil {
		return fmt.Errorf("%w: vtpm.expected: %w", ErrPolicy, err)
	}
	table, err := predict.ParseTable(b, r.Selection.Bank)
	if err != nil {
		return f.errorf("vtpm.expected", "%s: %v", f.VTPM.Expected, err)
	}
	for _, n := range r.Selection.PCRs {
		if r.Values[n] = table[n].Value; r.Values[n] == nil {
			return f.errorf("vtpm.expected", "%s: it has no value of PCR %d", f.VTPM.Expected, n)
		}
	}
	return nil
}

// predicted works the values out.
func (f *File) predicted(r *Registers) (err error) {
	if r.Inputs, err = f.measuredBoot(r.Selection.Bank); err != nil {
		return err
	}
	if r.Prediction, err = predict.Predict(r.Inputs); err != nil {
		return fmt.Errorf("%w: vtpm: %w", ErrPolicy, err)
	}
	for _, n := range r.Selection.PCRs {
		p := r.Prediction.PCRs[n]
		switch p.Certainty {
		case predict.Unknown:
			return f.errorf(
				"vtpm.pcrs",
				"PCR %d cannot be predicted: %s; leave it out, or take it from a boot (expected)",
				n,
				p.Why,
			)
		case predict.DependsOn:
			r.Holds = append(r.Holds, fmt.Sprintf("PCR %d holds if %s", n, p.Why))
		}
		r.Values[n] = p.Values[r.Selection.Bank]
	}
	return nil
}

// measuredBoot is what the guest boots.
func (f *File) measuredBoot(bank eventlog.Bank) (*predict.Inputs, error) {
	g, t := f.Guest, f.VTPM
	b, err := ovmf.ReadFile(f.path(g.Firmware))
	if err != nil {
		return nil, fmt.Errorf("%w: guest.firmware: %w", ErrPolicy, err)
	}
	in := &predict.Inputs{Banks: []eventlog.Bank{bank}}
	if in.Firmware, err = predict.ReadFirmware(b); err != nil {
		return nil, fmt.Errorf("%w: guest.firmware: %w", ErrPolicy, err)
	}
	switch inside := in.Firmware.Variables != nil; {
	case inside && t.Vars != "":
		return nil, f.errorf("vtpm.vars", "the firmware's image has variables itself, and QEMU takes those")
	case !inside && t.Vars == "":
		return nil, f.errorf("vtpm.vars", "is missing: the firmware's variables are in a file of their own")
	case !inside:
		vars, err := ovmf.ReadFile(f.path(t.Vars))
		if err == nil {
			in.Variables, err = uefivar.Read(vars)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: vtpm.vars: %w", ErrPolicy, err)
		}
	}
	if t.Memory != "" {
		size, err := bytesize.Parse(t.Memory)
		if err != nil {
			return nil, f.errorf("vtpm.memory", "%v", err)
		}
		in.Memory = uint64(size)
	}
	if t.QEMU != "" {
		major, _, _ := strings.Cut(t.QEMU, ".")
		if in.QEMU, err = strconv.Atoi(major); err != nil || in.QEMU < 1 {
			return nil, f.errorf("vtpm.qemu", "%q: must be a version, such as 11.1", t.QEMU)
		}
	}
	if in.Kernel, err = regular.Read(f.path(g.Kernel), maxKernel); err != nil {
		return nil, fmt.Errorf("%w: guest.kernel: %w", ErrPolicy, err)
	}
	if in.Cmdline, err = f.Cmdline(); err != nil {
		return nil, err
	}
	if g.Initrd != "" {
		if in.Initrd, err = predict.HashInitrd(firstboot.Initrd{File: f.path(g.Initrd)}, bank); err != nil {
			return nil, fmt.Errorf("%w: guest.initrd: %w", ErrPolicy, err)
		}
	}
	return in, nil
}

// vtpmDigests are the registers that are expected.
func (f *File) vtpmDigests(*ovmf.Image) (list []Digest, err error) {
	if f.VTPM == nil {
		return nil, nil
	}
	r, err := f.Registers()
	if err != nil {
		return nil, err
	}
	from := f.files(f.VTPM.Expected)
	if g := f.Guest; from == nil {
		from = f.files(g.Firmware, f.VTPM.Vars, g.Kernel, g.Initrd, g.Cmdline)
	}
	for _, n := range r.Selection.PCRs {
		list = append(list, Digest{
			Technology: "vtpm", Register: fmt.Sprintf("PCR%d", n), Value: r.Values[n], From: from,
		})
	}
	return list, nil
}
