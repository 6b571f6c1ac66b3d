package predict

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/authenticode"
	"github.com/vmlatch/vmlatch/firmware/bzimage"
	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/uefivar"
)

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
	{GUID: uefivar.GUIDGlobal, Name: "SecureBoot"},
	{GUID: uefivar.GUIDGlobal, Name: "PK"},
	{GUID: uefivar.GUIDGlobal, Name: "KEK"},
	{GUID: uefivar.GUIDImageSecurity, Name: "db"},
	{GUID: uefivar.GUIDImageSecurity, Name: "dbx"},
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
	// Keys of timestamps are measured only where there are any (edk2,
	// SecurityPkg/Tcg/Tcg2Dxe/Tcg2Dxe.c, MeasureAllSecureVariables).
	if dbt := b.Variables.Find(uefivar.GUIDImageSecurity, "dbt"); dbt != nil && len(dbt.Data) > 0 {
		b.add(7, eventlog.VariableDriverConfig, dbt.Name, dbt.Event())
	}
	b.separator(7)
	if !b.secureBoot() {
		return
	}
	image := b.Kernel
	if b.UKI != nil {
		image = b.UKI
	}
	entry, err := authority(b.Variables.Find(uefivar.GUIDImageSecurity, "db"), image)
	if err != nil {
		for _, pcr := range []int{4, 7, 9} {
			b.unknown(pcr, "%v", err)
		}
		return
	}
	v := uefivar.Variable{GUID: uefivar.GUIDImageSecurity, Name: "db", Data: entry}
	b.add(7, eventlog.VariableAuthority, "the key that lets the kernel run", v.Event())
}

// tables are QEMU's, and the boot options, in PCR 1.
func (b *booting) tables() {
	f := b.Firmware
	defer b.separator(1)
	if b.UKI != nil { // a kernel of -kernel is started before the firmware looks for disks
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
		if f.measuresACPI {
			b.depends(1, "the firmware puts 64-bit BARs into the last eighth of the address space, as it does for"+
				" CPU models with 40 to 46 bits of physical addresses and pages of 1 GiB")
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
		case v.GUID != uefivar.GUIDGlobal || !strings.HasPrefix(v.Name, "Boot"):
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

// Texts that firmware measures when its services end.
const (
	exitBegins = "Exit Boot Services Invocation"
	exitDone   = "Exit Boot Services Returned with Success"
	exitFailed = "Exit Boot Services Returned with Failure"
)

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
			b.unknown(
				pcr,
				"QEMU fills in the kernel's header, which breaks its signature: with Secure Boot, firmware"+
					" refuses it or starts it in a way that is not measured",
			)
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
	sums := map[eventlog.Bank][]byte{}
	for _, bank := range b.Banks {
		sum, err := authenticode.Sum(image, bank.Hash().New())
		if err != nil {
			return fmt.Errorf("%w: %s: %w", ErrInputs, what, err)
		}
		sums[bank] = sum
	}
	b.digests(pcr, eventlog.BootServicesApplication, what, func(bank eventlog.Bank) []byte { return sums[bank] })
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
	for _, text := range []string{exitBegins, exitDone} {
		b.add(5, eventlog.EFIAction, text, []byte(text))
	}
	b.depends(5, "the firmware's services end at the first try, which is not always so")
}
