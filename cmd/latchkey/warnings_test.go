//go:build linux

package main

import (
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/ovmf/ovmftest"
)

// TestOddInputs: a digest for a launch that QEMU would not make is refused, or warned of.
func TestOddInputs(t *testing.T) {
	d := newDesk(t)
	d.write("elf", "\x7fELF"+strings.Repeat("\x00", 8192))
	d.write("fw.qcow2", "QFI\xfb"+string(d.read("OVMF.fd")))
	d.write("odd.fd", strings.Repeat("\xff", 4096)+string(d.read("OVMF.fd")))
	d.write("text", strings.Repeat("text\n", 1000))
	d.write("hole.fd", string(ovmftest.Image(ovmftest.Size(imageSize), ovmftest.ResetVector(), ovmftest.ResetBlock(1),
		ovmftest.SEVMetadata(ovmf.Section{GPA: 0x1000, Size: 0x1000, Type: ovmf.SectionMemory},
			ovmf.Section{Type: ovmf.SectionSVSMCAA}),
		ovmftest.TDXMetadata(ovmf.TDXSection{GPA: 0x1000, Size: 0x1000, Type: 5}))))
	snp := "measure --technology sev-snp --cpu EPYC-Milan --firmware hole.fd"
	for line, want := range map[string]string{
		"measure --firmware OVMF.fd --kernel elf": `warning: --kernel elf: not a bzImage: an ELF file`,
		"measure --firmware odd.fd":               `warning: --firmware odd.fd: 266240 bytes, .*blocks of 64 KiB`,
		"measure --firmware text":                 `warning: --firmware text: this may be no firmware image`,
		"measure --firmware OVMF.fd --kernel vmlinuz --cmdline " + strings.Repeat("x", 2100): `has 2100 bytes, of` +
			` which this kernel takes the first 2047`,
	} {
		code, out, errs := d.try(line)
		if code != cli.ExitOK || len(out) != 65 {
			t.Errorf("%s: code %d, %q: want a digest", line, code, out)
		}
		matches(t, line, errs, want)
	}
	d.refused(
		"measure --firmware fw.qcow2",
		cli.ExitUsage,
		`a qcow2 image, not a firmware image.*qemu-img convert -O raw`,
	)
	d.refused(snp, cli.ExitUsage, `QEMU refuses the firmware: section 1 .*SVSM calling area.* is a placeholder`)
	d.refused("measure --technology tdx --firmware hole.fd", cli.ExitUsage, `has type 5, which QEMU does not support`)
	d.run("measure --technology tdx --vmm gce --firmware hole.fd")
	d.run(snp + " --vmm ec2")
	d.refused("measure --firmware /dev/zero", cli.ExitUsage, `not a regular file`)
	d.refused("measure --firmware OVMF.fd --kernel /dev/zero", cli.ExitUsage, `not a regular file`)
}

// What an editor or a shell puts around a passphrase is named: it is sent all the same.
func TestWarnOfText(t *testing.T) {
	for text, want := range map[string]string{
		"secret": "", "secret\n": "ends in a newline", "secret\r\n": "ends in a newline", "secret ": "ends in a blank",
		"secret\x00": "ends in a NUL byte", "secret\u00a0": "ends in a no-break space",
		"\uFEFFsecret": "begins with a byte order mark", "\xff\xfes\x00": "begins with the mark of UTF-16",
	} {
		var said strings.Builder
		warnOfText(&cli.IO{Err: &said, Name: "latchkey"}, "file", []byte(text))
		if got := said.String(); !strings.Contains(got, want) || (got == "") != (want == "") {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
		if strings.Contains(said.String(), "secret") {
			t.Errorf("%q: the secret is printed: %q", text, said.String())
		}
	}
}
