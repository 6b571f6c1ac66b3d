package predict

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/authenticode"
	"github.com/vmlatch/vmlatch/firmware/bzimage"
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

// Initrd is an initial RAM disk: its size and its digests, as a file may be large.
type Initrd struct {
	Size    int64
	Digests map[eventlog.Bank][]byte
}

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
	Others bool   // there are disks or networks, of which firmware makes boot options
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
	Banks []eventlog.Bank
	PCRs  [Registers]PCR
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
	b.replay()
	b.ima()
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

// crtm is what the firmware measures of itself, into PCR 0.
func (b *booting) crtm() {
	f := b.Firmware
	b.add(0, eventlog.CRTMVersion, "firmware version", append(wide(f.Version), 0, 0))
	for i, v := range f.Volumes[:2] {
		b.add(0, eventlog.FirmwareBlob, []string{"first modules (PEI)", "drivers (DXE)"}[i], v)
	}
	b.separator(0)
	switch yes, known := f.unchanged(); {
	case !known:
		b.depends(
			0,
			"the modules of this build do not write to their own data before they are measured,"+
				" which is not known of it: compare it with one boot",
		)
	case !yes:
		b.unknown(0, "this firmware writes memory size and processors into its modules before it measures them")
	}
}

// securityVariables are measured into PCR 7, in this order.
var securityVariables = []uefivar.Variable{
	{GUID: uefivar.Global, Name: "SecureBoot"},
	{GUID: uefivar.Global, Name: "PK"},
	{GUID: uefivar.Global, Name: "KEK"},
	{GUID: uefivar.ImageSecurity, Name: "db"},
	{GUID: uefivar.ImageSecurity, Name: "dbx"},
}

// secureBoot reports whether Secure Boot is on.
func (b *booting) secureBoot() bool { return b.Firmware.SecureBoot && b.Variables.SecureBoot() }

// keys are the keys of Secure Boot, in PCR 7.
func (b *booting) keys() {
	for _, v := range securityVariables {
		if found := b.Variables.Find(v.GUID, v.Name); found != nil {
			v.Data = found.Data
		}
		if v.Name == "SecureBoot" {
			switch v.Data = nil; {
			case b.secureBoot():
				v.Data = []byte{1}
			case b.Firmware.SecureBoot:
				v.Data = []byte{0}
			}
		}
		b.add(7, eventlog.VariableDriverConfig, v.Name, v.Event())
	}
	b.separator(7)
	if !b.secureBoot() {
		return
	}
	image := b.Kernel
	if b.UKI != nil {
		image = b.UKI
	}
	entry, err := authority(b.Variables.Find(uefivar.ImageSecurity, "db"), image)
	if err != nil {
		b.unknown(7, "%v", err)
		return
	}
	v := uefivar.Variable{GUID: uefivar.ImageSecurity, Name: "db", Data: entry}
	b.add(7, eventlog.VariableAuthority, "the key that lets the kernel run", v.Event())
}

// tables are QEMU's, and the boot options, in PCR 1.
func (b *booting) tables() {
	f := b.Firmware
	defer b.separator(1)
	if b.UKI != nil || b.Others {
		b.unknown(1, "the boot options name the disks and networks")
		return
	}
	options := f.bootOptions()
	if options == nil {
		b.unknown(1, "the boot options of this firmware are not known")
		return
	}
	if !b.optionsAre(options) {
		b.unknown(1, "the variables hold boot options already, which the firmware adds to")
		return
	}
	if f.measuresACPI || f.measuresTable {
		if b.Tables == nil {
			b.unknown(1, "it holds QEMU's tables, which depend on its version, memory and devices")
			return
		}
		list, err := b.Tables.acpi()
		if err == nil && f.measuresACPI {
			for _, data := range list {
				b.add(1, eventlog.PlatformConfigFlags, "ACPI data", data)
			}
		}
		var smbios []byte
		if err == nil && f.measuresTable {
			smbios, err = b.Tables.smbios(f.vendor, f.Version, f.date)
			b.add(1, eventlog.HandoffTables, "SMBIOS tables", smbios)
		}
		if err != nil {
			b.unknown(1, "%v", err)
			return
		}
	}
	for i, data := range options {
		what := "BootOrder"
		if i > 0 {
			what = fmt.Sprintf("Boot%04d", i-1)
		}
		b.add(1, eventlog.VariableBoot, what, data)
	}
}

// optionsAre reports whether the variables hold no boot options, or those that the firmware makes.
func (b *booting) optionsAre(want [][]byte) bool {
	for _, v := range b.Variables {
		switch i := -1; {
		case v.GUID != uefivar.Global || !strings.HasPrefix(v.Name, "Boot"):
		case v.Name == "BootOrder":
			if !bytes.Equal(v.Data, want[0]) {
				return false
			}
		case isBootOption.MatchString(v.Name):
			if _, err := fmt.Sscanf(v.Name[4:], "%X", &i); err != nil || i+1 >= len(want) || i < 0 ||
				!bytes.Equal(v.Data, want[i+1]) {
				return false
			}
		}
	}
	return true
}

// isBootOption matches Boot#### (UEFI 2.10, section 3.1.2).
var isBootOption = regexp.MustCompile(`^Boot[0-9A-F]{4}$`)

func (b *booting) optionROMs() {
	for _, pcr := range []int{2, 3, 6} {
		b.separator(pcr)
	}
	b.depends(2, "no device brings an option ROM (romfile=)")
}

const calling = "Calling EFI Application from Boot Option"

// code is what the firmware starts, in PCR 4.
func (b *booting) code() error {
	if b.UKI != nil {
		b.add(4, eventlog.EFIAction, "start of a boot option", []byte(calling))
		b.separator(4)
		if err := b.image(4, "unified kernel image", b.UKI); err != nil {
			return err
		}
		b.depends(4, "the first boot option starts it: no other was tried, no boot loader stands between")
		if b.secureBoot() {
			return nil
		}
		sections, err := sectionsOf(b.UKI, nil)
		if errors.Is(err, errChoices) {
			b.unknown(4, "%v", err)
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: unified kernel image: %w", ErrInputs, err)
		}
		return b.image(4, "kernel inside it", sections[0].data)
	}
	kernel := b.Kernel
	if b.header() && b.secureBoot() {
		for _, pcr := range []int{4, 7, 9} {
			b.unknown(pcr, "QEMU fills in the kernel's header, which breaks its signature: with Secure Boot, firmware"+
				" refuses it or starts it in a way that is not measured")
		}
		return nil
	}
	if b.header() {
		var err error
		if kernel, err = b.patched(); err != nil {
			b.unknown(4, "%v", err)
			kernel = b.Kernel
		}
	}
	if err := b.image(4, "kernel", kernel); err != nil {
		return err
	}
	b.add(4, eventlog.EFIAction, "start of a boot option", []byte(calling))
	b.separator(4)
	return nil
}

// rawSince is the major version of QEMU that also offers firmware the kernel as the file is.
const rawSince = 10

// header reports whether the firmware gets a kernel whose header QEMU has filled in.
func (b *booting) header() bool {
	switch {
	case !bzimage.HasHeader(b.Kernel):
		return false
	case !b.Firmware.rawKernel:
		return true
	case b.QEMU == 0:
		b.depends(4, "QEMU is of version %d or newer: older ones fill in the kernel's header", rawSince)
		return false
	}
	return b.QEMU < rawSince
}

func (b *booting) patched() ([]byte, error) {
	if b.Memory == 0 && b.Initrd != nil {
		return nil, errors.New(
			"QEMU fills in the kernel's header, with what depends on the guest's memory, which is not known",
		)
	}
	var initrd int64
	if b.Initrd != nil {
		initrd = b.Initrd.Size
	}
	return bzimage.Patched(b.Kernel, b.Memory, initrd, b.Cmdline)
}

func (b *booting) image(pcr int, what string, image []byte) error {
	if _, err := authenticode.Sum(image, sha256.New()); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrInputs, what, err)
	}
	b.digests(pcr, eventlog.BootServicesApplication, what, func(bank eventlog.Bank) []byte {
		sum, _ := authenticode.Sum(image, bank.Hash().New()) // which was tried
		return sum
	})
	return nil
}

// disk is what is measured of partitions, in PCR 5, and the end of the firmware's services.
func (b *booting) disk() {
	b.separator(5)
	if b.UKI != nil {
		if b.GPT == nil {
			b.unknown(5, "it holds the disk's partition table")
		} else {
			b.add(5, eventlog.GPT, "partition table", b.GPT)
		}
	}
	for _, text := range []string{"Exit Boot Services Invocation", "Exit Boot Services Returned with Success"} {
		b.add(5, eventlog.EFIAction, text, []byte(text))
	}
	b.depends(5, "the firmware's services end at the first try, which is not always so")
}

// linux is what the kernel's stub, and systemd's, measure: PCR 9 to 15.
func (b *booting) linux() error {
	if b.UKI != nil {
		return b.unified()
	}
	if b.p.PCRs[9].Certainty == Unknown {
		return nil
	}
	if b.Firmware.options == styleUnknown && b.Initrd != nil {
		b.unknown(9, "where this firmware puts initrd= in the load options is not known")
		return nil
	}
	options := bzimage.LoadOptions(b.Cmdline, b.Initrd != nil, b.Firmware.options == styleSuffix)
	b.add(9, eventlog.EventTag, "command line", options)
	if b.Initrd != nil {
		for _, bank := range b.Banks {
			if b.Initrd.Digests[bank] == nil {
				return fmt.Errorf("%w: the initrd has no digest of %v", ErrInputs, bank)
			}
		}
		b.digests(9, eventlog.EventTag, "initrd", func(bank eventlog.Bank) []byte { return b.Initrd.Digests[bank] })
	}
	b.depends(9, "the kernel measures its command line (Linux 5.18 or newer)")
	return nil
}

func (b *booting) unified() error {
	by, unknown := stubOf(b.UKI)
	sections, err := sectionsOf(b.UKI, by)
	if errors.Is(err, errChoices) {
		b.unknown(11, "%v", err)
		b.unknown(9, "%v", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: unified kernel image: %w", ErrInputs, err)
	}
	b.unknown(9, "the initrd there is what the stub puts together: use PCR 11")
	for _, s := range sections {
		b.add(11, eventlog.IPL, "name of "+s.name, append([]byte(s.name), 0))
		b.add(11, eventlog.IPL, s.name, s.data)
	}
	words, err := phaseWords(b.Phase)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInputs, err)
	}
	for _, w := range words {
		b.add(11, eventlog.IPL, "phase "+w, []byte(w))
	}
	phase := b.Phase
	if phase == "" {
		phase = "none"
	}
	switch {
	case unknown != nil:
		b.unknown(11, "%v", unknown)
	case by.untried:
		b.depends(11, "systemd-stub %d measures as %d does, which was not tried", by.version, stubTried)
	}
	b.depends(11, "systemd has measured the phase %q and none after it", phase)
	b.depends(12, "no add-on, credential or other command line is passed to the stub")
	b.depends(13, "no extension image is passed to the stub")
	return nil
}

// replay works out the values from the events.
func (b *booting) replay() {
	for i := range b.p.PCRs {
		p := &b.p.PCRs[i]
		if p.Certainty == Unknown {
			p.Events = nil
			continue
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
	for _, pcr := range []int{8, 14, 15} {
		if b.UKI == nil && pcr != 15 {
			continue // nothing between the firmware and the kernel could use them
		}
		b.depends(pcr, "nothing in the guest extends it")
	}
}

// ima is the aggregate of the other registers, which kernels with IMA measure into PCR 10.
func (b *booting) ima() {
	p := &b.p.PCRs[10]
	for i := range 10 {
		if b.p.PCRs[i].Values == nil {
			b.unknown(10, "with IMA it holds an aggregate of PCR 0 to 9, of which some are unknown")
			p.Values = nil
			return
		}
	}
	if !slices.Contains(b.Banks, eventlog.SHA256) {
		b.unknown(10, "with IMA it holds an aggregate of the SHA-256 bank")
		p.Values = nil
		return
	}
	var all []byte
	for i := range 10 {
		all = append(all, b.p.PCRs[i].Values[eventlog.SHA256]...)
	}
	data := aggregate(eventlog.SHA256.Sum(all), true)
	b.digests(10, eventlog.IPL, "boot aggregate", func(bank eventlog.Bank) []byte { return imaDigest(bank, data) })
	for _, bank := range b.Banks {
		p.Values[bank] = bank.Extend(make([]byte, bank.Hash().Size()), p.Events[0].Digests[bank])
	}
	var why []string
	for i := range 10 {
		if b.p.PCRs[i].Certainty != Exact {
			why = append(why, fmt.Sprint(i))
		}
	}
	b.depends(
		10,
		"the kernel has IMA with the template ima-sig and no further policy; and on PCR %s",
		strings.Join(why, ", "),
	)
}

// aggregate is the data of IMA's first entry (Linux, security/integrity/ima/ima_init.c and
// ima_template_lib.c), of the template ima-sig or ima-ng.
func aggregate(sum []byte, sig bool) []byte {
	field := func(b, data []byte) []byte {
		n := len(data)
		return append(append(b, byte(n), byte(n>>8), byte(n>>16), byte(n>>24)), data...)
	}
	b := field(nil, append([]byte("sha256:\x00"), sum...))
	b = field(b, []byte("boot_aggregate\x00"))
	if sig {
		b = field(b, nil)
	}
	return b
}

// imaDigest is what IMA extends a bank by: banks longer than SHA-256 get the SHA-1 digest, padded
// with zeros.
func imaDigest(bank eventlog.Bank, data []byte) []byte {
	if bank == eventlog.SHA1 || bank == eventlog.SHA256 {
		return bank.Sum(data)
	}
	return append(eventlog.SHA1.Sum(data), make([]byte, bank.Hash().Size()-20)...)
}
