package predict

import (
	"errors"
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/uefivar"
)

// Certainty is how much a prediction is worth.
type Certainty string

// Certainties.
const (
	Exact     Certainty = "exact"
	DependsOn Certainty = "depends-on" // a condition that Why names
	Unknown   Certainty = "unknown"    // for the cause that Why names
)

// Registers is how many are predicted: 0 to 15.
const Registers = 16

// Inputs are what a machine boots.
type Inputs struct {
	Firmware  *Firmware
	Variables uefivar.Store // nil: those in the firmware's image
	// Either a kernel that QEMU loads (-kernel), or a unified kernel image that the firmware starts
	// from a disk.
	Kernel  []byte
	Initrd  *Initrd // nil for none
	Cmdline string
	UKI     []byte
	Phase   string // how far systemd has come: none, enter-initrd, leave-initrd, sysinit, ready

	Memory uint64 // of the guest, in bytes; 0 if not known
	QEMU   int    // its major version; 0 if not known
	Tables Tables // of QEMU; nil if not known
	GPT    []byte // the event of the disk's partitions; nil if not known
	Banks  []eventlog.Bank
}

// Event is a measurement.
type Event struct {
	PCR     int                      `json:"pcr"`
	Type    eventlog.Type            `json:"-"`
	What    string                   `json:"what"`
	Digests map[eventlog.Bank][]byte `json:"-"`
}

// PCR is a predicted register.
type PCR struct {
	Index     int
	Certainty Certainty
	Why       string                   // the conditions, or the cause
	Values    map[eventlog.Bank][]byte // nil if unknown
	Events    []Event
}

// Prediction is what a boot leaves in the registers.
type Prediction struct {
	Banks      []eventlog.Bank
	PCRs       [Registers]PCR
	SecureBoot bool // it is on
}

// ErrInputs is wrapped by errors about inputs that do not go together, or cannot be read.
var ErrInputs = errors.New("the inputs of a measured boot")

// booting puts a prediction together.
type booting struct {
	*Inputs
	p *Prediction
}

// Predict works out the registers. Banks are those of Inputs, or SHA-256.
func Predict(in *Inputs) (*Prediction, error) {
	x := *in
	if len(x.Banks) == 0 {
		x.Banks = []eventlog.Bank{eventlog.SHA256}
	}
	switch {
	case x.Firmware == nil:
		return nil, fmt.Errorf("%w: there is no firmware", ErrInputs)
	case (x.Kernel == nil) == (x.UKI == nil):
		return nil, fmt.Errorf("%w: either a kernel or a unified kernel image is booted", ErrInputs)
	case x.UKI != nil && (x.Initrd != nil || x.Cmdline != ""):
		return nil, fmt.Errorf("%w: a unified kernel image brings its own initrd and command line", ErrInputs)
	}
	b := &booting{Inputs: &x, p: &Prediction{Banks: x.Banks}}
	if b.Variables == nil {
		b.Variables = x.Firmware.Variables
	}
	b.p.SecureBoot = b.secureBoot()
	for i := range b.p.PCRs {
		b.p.PCRs[i] = PCR{Index: i, Certainty: Exact}
	}
	b.crtm()
	b.keys()
	b.tables()
	b.optionROMs()
	if err := b.code(); err != nil {
		return nil, err
	}
	b.disk()
	if err := b.linux(); err != nil {
		return nil, err
	}
	for i := range b.p.PCRs {
		if i != imaPCR {
			b.replay(&b.p.PCRs[i])
		}
	}
	for _, pcr := range []int{8, 14, 15} {
		if b.UKI != nil || pcr == 15 { // else nothing between the firmware and the kernel could use them
			b.depends(pcr, "nothing in the guest extends it")
		}
	}
	b.ima()
	b.replay(&b.p.PCRs[imaPCR])
	return b.p, nil
}

// add notes a measurement of data.
func (b *booting) add(pcr int, kind eventlog.Type, what string, data []byte) {
	b.digests(pcr, kind, what, func(bank eventlog.Bank) []byte { return bank.Sum(data) })
}

func (b *booting) digests(pcr int, kind eventlog.Type, what string, of func(eventlog.Bank) []byte) {
	e := Event{PCR: pcr, Type: kind, What: what, Digests: map[eventlog.Bank][]byte{}}
	for _, bank := range b.Banks {
		e.Digests[bank] = of(bank)
	}
	p := &b.p.PCRs[pcr]
	p.Events = append(p.Events, e)
}

// depends makes a register depend on a condition.
func (b *booting) depends(pcr int, format string, args ...any) {
	b.mark(pcr, DependsOn, fmt.Sprintf(format, args...))
}

// unknown says that a register cannot be predicted.
func (b *booting) unknown(pcr int, format string, args ...any) {
	b.mark(pcr, Unknown, fmt.Sprintf(format, args...))
}

func (b *booting) mark(pcr int, c Certainty, why string) {
	p := &b.p.PCRs[pcr]
	switch {
	case p.Certainty == c:
		p.Why += "; " + why
	case p.Certainty == Exact || c == Unknown:
		p.Certainty, p.Why = c, why
	}
}

func (b *booting) separator(pcr int) {
	b.add(pcr, eventlog.Separator, "separator", []byte{0, 0, 0, 0})
}

// replay works out a register's values from its events.
func (b *booting) replay(p *PCR) {
	if p.Certainty == Unknown {
		p.Events = nil
		return
	}
	p.Values = map[eventlog.Bank][]byte{}
	for _, bank := range b.Banks {
		value := make([]byte, bank.Hash().Size())
		for _, e := range p.Events {
			value = bank.Extend(value, e.Digests[bank])
		}
		p.Values[bank] = value
	}
}
