//go:build linux

// These tests need swtee, which is for Linux, as their platform.

package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/ffs/ffstest"
)

func TestFirmware(t *testing.T) {
	d := newDesk(t)
	out, _ := d.run("firmware --map map.svg OVMF.fd")
	for _, want := range []string{
		`size +262144 bytes, loaded at 0xfffc0000`,
		`SNP pages +[0-9a-f]{96}`,
		`MRTD +` + d.measured("--technology tdx --firmware OVMF.fd"),
		`GUIDed table\n`,
		`kernel hash area +0x810c00 +0x400 +contents +contents`,
	} {
		matches(t, "firmware", out, want)
	}
	if svg := string(d.read("map.svg")); !strings.Contains(svg, "<svg ") {
		t.Errorf("the map is %.40q, want SVG", svg)
	}
	out, _ = d.run("firmware --json OVMF.fd")
	var j struct{ Schema string }
	must(t, json.Unmarshal([]byte(out), &j))
	if j.Schema != "latchkey.firmware/1" {
		t.Errorf("schema %q, want latchkey.firmware/1", j.Schema)
	}
}

// What is not firmware is said to be so, or refused where that is beyond doubt.
func TestFirmwareOfSomethingElse(t *testing.T) {
	d := newDesk(t)
	d.write("text", strings.Repeat("text\n", 1000))
	d.write("elf", "\x7fELF and more")
	_, said := d.run("firmware text")
	matches(t, "firmware", said, `warning: text: this may be no firmware image: it has no reset vector`)
	d.refused("firmware elf", cli.ExitUsage, `elf: it is an ELF file`)
}

func TestFirmwareDiff(t *testing.T) {
	d := newDesk(t)
	out, _ := d.run("firmware diff OVMF.fd OVMF.fd")
	matches(t, "diff of one image", out, `identical: no digest changes`)
	differs := func(line string) string {
		t.Helper()
		code, out, said := d.try("firmware " + line)
		if code != cli.ExitFailure || !strings.Contains(said, "the images differ") {
			t.Errorf("%s: code %d, want 1: %s", line, code, said)
		}
		return out
	}
	matches(t, "diff", differs("diff OVMF.fd generic.fd"), `digest of sev +changes\n`)
	d.write("a.fd", string(ffstest.Measuring(t, ffstest.Build{Version: "1.0", Driver: "a"})))
	d.write("b.fd", string(ffstest.Measuring(t, ffstest.Build{Version: "1.0", Driver: "b", SecureBoot: true})))
	out = differs("diff a.fd b.fd")
	matches(t, "diff", out, `contents differ: module Driver \(driver, 11111111-`)
	matches(t, "diff", out, `only in the second: module SecureBootConfigDxe`)
	if strings.Contains(out, "module BdsDxe") {
		t.Errorf("a module that both have is said to differ:\n%s", out)
	}
	out, _ = d.run("firmware --modules b.fd")
	matches(t, "modules", out, `version +1\.0\nSecure Boot +off`)
	matches(t, "modules", out, `(?m)^  BdsDxe +driver +6d33944a-\S+ +0x[0-9a-f]+ +contents .* contents +PE32, name$`)
	out = differs("--json diff OVMF.fd generic.fd")
	var j struct {
		Same    bool
		Digests map[string]bool `json:"digest-changes"`
	}
	must(t, json.Unmarshal([]byte(out), &j))
	if j.Same || !j.Digests["sev-snp"] {
		t.Errorf("diff --json: %+v, want a changed digest of sev-snp", j)
	}
}

func TestFirmwareRefusals(t *testing.T) {
	d := newDesk(t)
	d.write("guest.igvm", string(igvmFile(t)))
	d.write("broken.igvm", string(igvmFile(t)[:100]))
	for args, want := range map[string]string{
		"":                              `usage: latchkey firmware`,
		"diff":                          `usage: latchkey firmware`,
		"diff OVMF.fd":                  `usage: latchkey firmware`,
		"missing":                       `no such file`,
		"diff missing OVMF.fd":          `no such file`,
		"diff OVMF.fd missing":          `no such file`,
		"diff guest.igvm OVMF.fd":       `IGVM files cannot be compared`,
		"broken.igvm":                   `IGVM`,
		"--map missing/map.svg OVMF.fd": `no such file`,
	} {
		d.refused("firmware "+args, cli.ExitUsage, want)
	}
}
