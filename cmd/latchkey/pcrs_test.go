//go:build linux

package main

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/authenticode/petest"
	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/eventlog/eventlogtest"
	"github.com/vmlatch/vmlatch/firmware/ffs/ffstest"
	"github.com/vmlatch/vmlatch/firmware/tpm/predict"
)

// TestPCRs: what is predicted can be kept and compared, and a change is explained.
func TestPCRs(t *testing.T) {
	d := newDesk(t)
	d.write("TPM.fd", string(ffstest.Measuring(t, ffstest.Build{Version: "2026.08"})))
	d.write("other.fd", string(ffstest.Measuring(t, ffstest.Build{Version: "2026.08", Driver: "another"})))
	d.write("code.fd", string(ffstest.Measuring(t, ffstest.Build{SecureBoot: true})[64<<10:]))
	d.write("vmlinuz", string(petest.Code("a kernel")))
	const boot = "--kernel vmlinuz --initrd initrd --cmdline quiet "
	d.write("log", string(boots(t, "TPM.fd", "quiet")))
	d.write("log.sh", string(boots(t, "TPM.fd", "init=/bin/sh")))
	out, _ := d.run("pcrs --firmware TPM.fd " + boot)
	for _, want := range []string{
		`(?m)^0 +depends-on +[0-9a-f]{64}$`, `(?m)^4 +exact +[0-9a-f]{64}$`, `(?m)^7 +exact +b5710bf57d25`,
		`(?m)^1 +exact `, `# PCR 2 holds if: no device`, `(?m)^13 +exact +0{64}$`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("%s is missing:\n%s", want, out)
		}
	}
	var r pcrReport
	out, _ = d.run("pcrs --json --events --bank sha256 --bank sha384 --firmware TPM.fd --qemu 11.1 " + boot)
	must(t, json.Unmarshal([]byte(out), &r))
	if len(r.PCRs) != 16 || len(r.PCRs[3].Values["sha384"]) != 96 || r.PCRs[4].Certainty != "exact" ||
		len(r.Events) < 15 {
		t.Errorf("%s", out)
	}

	// A log is shown, and compared with a table that was kept.
	out, _ = d.run("pcrs --log log --events")
	if !strings.Contains(out, "[LOADED_IMAGE::LoadOptions]") ||
		!strings.Contains(out, "  Exit Boot Services Invocation\n") {
		t.Errorf("the events lack their words:\n%s", out)
	}
	kept, _ := d.run("pcrs --firmware TPM.fd " + boot)
	d.write("kept", kept+"\n# a note\n\n")
	d.run("pcrs --log log --expect kept")
	listed, _ := d.run("pcrs --events --firmware TPM.fd " + boot)
	d.write("listed", listed)
	d.run("pcrs --log log --expect listed")
	d.run("pcrs --log log --firmware TPM.fd " + boot)
	code, out, errs := d.try("pcrs --log log.sh --expect kept")
	if code != cli.ExitRefused || !strings.Contains(errs, "in PCR 9") ||
		!regexp.MustCompile(`(?m)^9 +differs`).MatchString(out) {
		t.Errorf("another boot: code %d, %s\n%s", code, errs, out)
	}
	code, out, _ = d.try("pcrs --log log.sh --firmware other.fd " + boot)
	for _, want := range []string{
		"drivers (DXE) are those of another build", "PCR 9: the command line differs", "was predicted if",
	} {
		if code != cli.ExitRefused || !strings.Contains(out, want) {
			t.Errorf("code %d, %q is missing:\n%s", code, want, out)
		}
	}
}

// boots is the log of a boot of this desk's files with a command line.
func boots(t *testing.T, firmware, cmdline string) []byte {
	t.Helper()
	d := desk{t: t}
	f, err := predict.ReadFirmware(d.read(firmware))
	must(t, err)
	p, err := predict.Predict(&predict.Inputs{
		Firmware: f, Kernel: d.read("vmlinuz"), Cmdline: cmdline, QEMU: 11,
		Initrd: &predict.Initrd{Size: 9, Digests: map[eventlog.Bank][]byte{
			eventlog.SHA256: eventlog.SHA256.Sum(d.read("initrd")),
		}},
	})
	must(t, err)
	var events []eventlog.Event
	for _, r := range p.PCRs {
		for _, e := range r.Events {
			x := eventlog.Event{Index: uint32(e.PCR), Type: e.Type, Digests: e.Digests}
			switch {
			case e.Type == eventlog.EFIAction:
				x.Data = []byte(e.What)
			case e.Type == eventlog.EventTag:
				x.Data = []byte("\xed\";\x8f\x1a\x00\x00\x00LOADED_IMAGE::LoadOptions\x00")
			}
			if r.Index != 10 { // IMA's own log has it
				events = append(events, x)
			}
		}
	}
	return eventlogtest.Write([]eventlog.Bank{eventlog.SHA256}, events...)
}

func TestPCRsRefused(t *testing.T) {
	d := newDesk(t)
	d.write("TPM.fd", string(ffstest.Measuring(t, ffstest.Build{Version: "2026.08"})))
	d.write("code.fd", string(ffstest.Measuring(t, ffstest.Build{})[64<<10:]))
	d.write("log", string(eventlogtest.Write([]eventlog.Bank{eventlog.SHA1, eventlog.SHA256})))
	d.write("none.fd", strings.Repeat("\xe9", 64<<10))
	d.write("tables", `{"schema":"other/1"}`)
	d.write("kept", "PCR CERTAINTY SHA256\n4 exact 1234\n")
	d.write("empty", "")
	d.write("bank", "PCR CERTAINTY SHA1\n4 exact 1234\n")
	d.write("twice", "PCR CERTAINTY SHA256\n"+strings.Repeat("4 exact "+strings.Repeat("0", 64)+"\n", 2))
	for line, want := range map[string]string{
		"--log log --kernel vmlinuz":    "needs --firmware too",
		"--log log --expect twice":      "PCR 4 twice",
		"":                              "nothing to predict from",
		"--firmware absent":             "absent",
		"--firmware OVMF.fd":            "cannot be read",
		"--firmware none.fd":            "no modules for a TPM",
		"--firmware TPM.fd":             "either a kernel or a unified kernel image",
		"--firmware TPM.fd --cmdline x": "are of a --kernel",
		"--firmware TPM.fd --kernel vmlinuz --phase ready":   "for a --uki",
		"--firmware TPM.fd --kernel vmlinuz --vars OVMF.fd":  "has variables itself",
		"--firmware code.fd --kernel vmlinuz":                "in a file of their own",
		"--firmware code.fd --kernel vmlinuz --vars vmlinuz": "holds no store",
		"--firmware TPM.fd --kernel initrd":                  "not a PE image",
		"--firmware TPM.fd --uki vmlinuz":                    "unified kernel image",
		"--firmware TPM.fd --kernel vmlinuz --memory 4G":     "GiB",
		"--firmware TPM.fd --kernel vmlinuz --qemu new":      "must be a version",
		"--firmware TPM.fd --kernel vmlinuz --tables tables": "vmlatch.tables/1",
		"--firmware TPM.fd --uki vmlinuz --disk initrd":      "partition table",
		"--firmware TPM.fd --kernel vmlinuz --bank md5":      "unknown bank",
		"--log vmlinuz":                             "event log",
		"--log log --bank sha256 --bank sha1":       "one --bank",
		"--log log --expect kept":                   "not a value of the bank",
		"--log log --expect empty":                  "no value of a register",
		"--log log --expect bank":                   "no values of the bank sha256",
		"--log log --expect initrd":                 "line 1",
		"--expect kept":                             "goes with --log",
		"--log log --firmware TPM.fd --expect kept": "without --firmware",
		"--log ": "log",
	} {
		d.refused("pcrs "+line, cli.ExitUsage, regexp.QuoteMeta(want))
	}
}
