package predict

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/bzimage"
	"github.com/vmlatch/vmlatch/firmware/eventlog"
)

// linux is what the kernel's stub, and systemd's, measure: PCR 9 to 15.
func (b *booting) linux() error {
	if b.UKI != nil {
		return b.unified()
	}
	if isUKI(b.Kernel) {
		for _, pcr := range []int{4, 9, 11, 12, 13} {
			b.unknown(pcr, "the kernel is a unified kernel image, whose stub measures more: give it as one")
		}
		return nil
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

// imaPCR is the register that IMA measures into.
const imaPCR = 10

// ima is the aggregate of the other registers, which kernels with IMA measure into PCR 10.
func (b *booting) ima() {
	var all []byte
	var why []string
	for i := range imaPCR {
		p := &b.p.PCRs[i]
		if p.Values == nil {
			b.unknown(imaPCR, "with IMA it holds an aggregate of PCR 0 to 9, of which some are unknown")
			return
		}
		all = append(all, p.Values[eventlog.SHA256]...)
		if p.Certainty != Exact {
			why = append(why, fmt.Sprint(i))
		}
	}
	if !slices.Contains(b.Banks, eventlog.SHA256) {
		b.unknown(imaPCR, "with IMA it holds an aggregate of the SHA-256 bank")
		return
	}
	data := aggregate(eventlog.SHA256.Sum(all), true)
	b.digests(imaPCR, eventlog.IPL, "boot aggregate", func(bank eventlog.Bank) []byte { return imaDigest(bank, data) })
	b.depends(
		imaPCR,
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
