//go:build linux

package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/evidence/evidencetest"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
	"github.com/vmlatch/vmlatch/firmware/tdx/ccel"
)

// judge is a desk with an AMD and an Intel of its own, and evidence of a guest.
type judge struct {
	*desk
	amd      *evidencetest.AMD
	ek       *evidencetest.Endorsed
	intel    *evidencetest.Intel
	platform *evidencetest.Platform
}

const at = " --as-of 2026-06-01T00:00:00Z"

func newJudge(t *testing.T) *judge {
	t.Helper()
	j := &judge{desk: newDesk(t), amd: evidencetest.NewAMD(t, kds.Milan, 0), intel: evidencetest.NewIntel(t)}
	j.ek, j.platform = j.amd.VCEK(t), j.intel.Platform(t, true)
	j.write("roots.pem", string(j.amd.RootPEM())+string(j.intel.RootPEM()))
	j.write("report.bin", string(j.ek.Report(t)))
	j.write("vcek.der", string(j.ek.Cert.Raw))
	j.write("crl.der", string(j.amd.CRL(t)))
	j.write("quote.bin", string(j.platform.Quote(t)))
	j.write("collateral.json", string(j.intel.Collateral(t)))
	j.run("bundle add bundle.json vcek.der crl.der collateral.json --trust-root roots.pem")
	return j
}

// verdict runs a verification that prints JSON, and holds it against its schema.
func (j *judge) verdict(line string, code cli.ExitCode) map[string]any {
	j.t.Helper()
	got, out, errs := j.try(line + " --json" + at)
	if got != code {
		j.t.Fatalf("%s: code %d, want %d: %s%s", line, got, code, out, errs)
	}
	var v map[string]any
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		j.t.Fatalf("%s: %v in %q", line, err, out)
	}
	var schema any
	if err := json.Unmarshal([]byte(verdictSchema), &schema); err != nil {
		j.t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("verdict.json", schema); err != nil {
		j.t.Fatal(err)
	}
	s, err := c.Compile("verdict.json")
	if err != nil {
		j.t.Fatal(err)
	}
	if err := s.Validate(v); err != nil {
		j.t.Errorf("%s: the verdict is not as its schema says: %v", line, err)
	}
	return v
}

func reason(v map[string]any) string {
	r, _ := v["refusal"].(map[string]any)
	text, _ := r["reason"].(string)
	return text
}

// TestGenuine: without a policy only genuineness is judged, and that is said. A test root counts
// only for whoever names it.
func TestGenuine(t *testing.T) {
	j := newJudge(t)
	for _, file := range []string{"report", "quote"} {
		line := file + " verify " + file + ".bin --genuine --bundle bundle.json"
		out, errs := j.run(line + " --trust-root roots.pem" + at)
		matches(
			t,
			file,
			out,
			`EMULATED, genuine; nothing else was demanded[^!]*was not compared[^!]*valid until 2026-0[67]`,
		)
		matches(t, file, errs, `warning: emulated`)
		v := j.verdict(line+" --trust-root roots.pem", cli.ExitOK)
		if v["emulated"] != true || v["accepted"] != true || v["policy"] != nil {
			t.Errorf("%s: %v", file, v)
		}
		if v := j.verdict(line, cli.ExitRefused); reason(v) != "chain" {
			t.Errorf("%s without the test root: %v, want chain", file, v)
		}
	}
	j.run("report verify report.bin --genuine --ek vcek.der --crl crl.der --trust-root roots.pem" + at)
	j.run("quote verify quote.bin --genuine --collateral collateral.json --trust-root roots.pem" + at)
	j.refused("report verify report.bin"+at, cli.ExitUsage, `say what is demanded.*\nhint`)
	j.refused(
		"report verify quote.bin --genuine",
		cli.ExitUsage,
		`quote of a guest of tdx\nhint: latchkey quote verify quote.bin`,
	)
	j.refused("quote show report.bin", cli.ExitUsage, `latchkey report show report.bin`)
	j.refused("quote show vcek.der", cli.ExitUsage, `not evidence`)
	j.refused("report verify report.bin --genuine --report-data 00", cli.ExitUsage, `64 bytes in hex`)
	j.refused("report verify report.bin --genuine --as-of yesterday", cli.ExitUsage, `--as-of`)
	j.refused("report verify nothing.bin --genuine", cli.ExitUsage, `nothing.bin`)
	j.refused("report look report.bin", cli.ExitUsage, `action`)
	j.refused("report verify report.bin --genuine --trust-root roots.pem"+at, cli.ExitRefused,
		`certificate-missing\)\nhint: AMD has it: https://kdsintf.amd.com/vcek/v1/Milan/3031.*blSPL=04`)
	out, errs := j.run("report show report.bin")
	matches(t, "show", out, `measurement +1{96}`)
	matches(t, "show", errs, `nothing here was verified`)
	out, _ = j.run("report show report.bin --json")
	matches(t, "show", out, `"signing-key": "vcek"`, `"family-id": "0{32}"`, `"version": \d`, `"snp": \d`)
	j.run("quote show quote.bin --json")
	j.write(
		"two.pem",
		strings.Repeat(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: j.ek.Cert.Raw})), 2),
	)
	j.refused("report verify report.bin --genuine --ek two.pem", cli.ExitUsage, `several`)
	// What is refused before it can be judged is a verdict for programs, too; to show it is none.
	j.write("short.bin", string(j.read("quote.bin")[:600]))
	if v := j.verdict("quote verify short.bin --genuine", cli.ExitRefused); reason(v) != "quote-size" {
		t.Errorf("verdict %v", v)
	}
	j.refused("quote show short.bin", cli.ExitUsage, `quote-size`)
	j.refused("report show report.bin --policy x", cli.ExitUsage, `--policy is for verify`)
	if out, _ := j.run("report --schema"); out != verdictSchema {
		t.Error("the schema is not printed")
	}
}

// TestPolicyOfReport: the whole way of an SEV-SNP guest, with digests from the owner's own files,
// and what differs is explained.
func TestPolicyOfReport(t *testing.T) {
	j := newJudge(t)
	j.write("cmdline", "console=ttyS0\n")
	head := "schema = \"latch-policy/1\"\nname = \"web-emulated\"\n[emulated]\nroot = \"roots.pem\"\n" +
		"[guest]\nfirmware = \"OVMF.fd\"\nkernel = \"vmlinuz\"\ncmdline = \"cmdline\"\ncpus = 1\ncpu = \"EPYC-Milan\"\n"
	policy := head + "[sev-snp]\npolicy = [\"smt\"]\nhost-acpi = \"accept\"\nchips = [\"" + hex.EncodeToString(
		j.ek.HWID,
	) + "\"]\n"
	j.write("web.toml", policy)
	out, errs := j.run("policy check web.toml")
	matches(t, "check", out, `sev-snp +MEASUREMENT +[0-9a-f]{96} +OVMF.fd, vmlinuz, cmdline`)
	matches(t, "check", errs, `emulated`)
	digest, err := hex.DecodeString(strings.Fields(out)[2])
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte{0xda}, 64)
	guest := func(change func(b []byte)) {
		j.write("report.bin", string(j.ek.Report(t, func(b []byte) { copy(b[0x90:], digest) }, change)))
	}
	guest(func([]byte) {})
	line := "report verify report.bin --policy web.toml --bundle bundle.json --report-data " + hex.EncodeToString(
		data,
	)
	out, _ = j.run(line + at)
	matches(
		t,
		"accepted",
		out,
		`EMULATED, accepted by policy web-emulated[^!]*exactly your guest[^!]*one of yours[^!]*for this purpose`,
	)
	if v := j.verdict(line, cli.ExitOK); v["chip"] != hex.EncodeToString(j.ek.HWID) ||
		v["policy"] != "web-emulated" {
		t.Errorf("verdict %v", v)
	}
	j.refused(line[:len(line)-1]+"b"+at, cli.ExitRefused, `report data differ`)
	// The guest of another command line: what differs is said.
	j.write("other", "console=ttyS0 init=/bin/sh\n")
	j.write("other.toml", strings.Replace(policy, `cmdline = "cmdline"`, `cmdline = "other"`, 1))
	j.write("none.toml", strings.Replace(policy, "kernel = \"vmlinuz\"\ncmdline = \"cmdline\"\n", "", 1))
	none, _ := j.run("policy check none.toml")
	if digest, err = hex.DecodeString(strings.Fields(none)[2]); err != nil {
		t.Fatal(err)
	}
	guest(func([]byte) {})
	j.refused(line+at, cli.ExitRefused, `launch digest differs[^!]*hint: what differs: .*kernel`)
	if v := j.verdict(line, cli.ExitRefused); reason(v) != "measurement" || v["explained"] == nil {
		t.Errorf("verdict %v", v)
	}
	j.write("report.bin", string(j.ek.Report(t, func(b []byte) { copy(b[0x90:], digest) })))
	out,
		_ = j.run("explain --evidence report.bin --firmware OVMF.fd" +
		" --kernel vmlinuz --cmdline console=ttyS0 --cpu EPYC-Milan")
	matches(t, "explain", out, `kernel`)
	j.refused("explain --evidence quote.bin --technology sev --firmware OVMF.fd", cli.ExitUsage, `it is of tdx`)
	j.refused("explain --evidence quote.bin --digest 00 --firmware OVMF.fd", cli.ExitUsage, `give what was seen`)
	guest(func(b []byte) { b[0x0a] |= 8 })
	j.refused(line+at, cli.ExitRefused, `debugging is on.*\(debug\)`)
	guest(func(b []byte) { copy(b[0x30:], []byte{0xff, 0xff, 0xff, 0xff}) })
	j.refused(line+at, cli.ExitRefused, `the host has asked for it.*\(vmpl\)`)
	j.refused(
		"report verify report.bin --policy web.toml --trust-root roots.pem --bundle bundle.json"+at,
		cli.ExitUsage,
		`which roots count`,
	)
	j.write(
		"genuine.toml",
		strings.Replace(
			strings.Replace(policy, "-emulated", "", 1),
			"[emulated]\nroot = \"roots.pem\"\n",
			"",
			1,
		),
	)
	guest(func([]byte) {})
	j.refused(
		"report verify report.bin --policy genuine.toml --bundle bundle.json"+at,
		cli.ExitRefused,
		`\(chain\)`,
	)
	j.refused(
		"report verify report.bin --policy genuine.toml --trust-root roots.pem",
		cli.ExitUsage,
		`the policy says which roots count`,
	)
	j.refused("quote verify quote.bin --policy web.toml", cli.ExitRefused, `no-policy`)
	j.refused("policy check web.tom", cli.ExitUsage, `web.tom`)
	j.write("bad.toml", strings.Replace(policy, "host-acpi", "host-apci", 1))
	j.refused("policy check bad.toml", cli.ExitUsage, `line 13: unknown key sev-snp.host-apci`)
}

// TestPolicyOfQuote: the whole way of a trust domain, with an event log, and what differs is
// explained from it.
func TestPolicyOfQuote(t *testing.T) {
	j := newJudge(t)
	kernel := peKernel()
	j.write("kernel", kernel)
	j.write("cmdline", "console=ttyS0\n")
	mrtd := strings.Repeat("21", 48)
	policy := "schema = \"latch-policy/1\"\nname = \"td-emulated\"\n[emulated]\nroot = \"roots.pem\"\n" +
		"[guest]\nfirmware = \"OVMF.fd\"\nkernel = \"kernel\"\ninitrd = \"initrd\"\ncmdline = \"cmdline\"\n" +
		"[tdx]\nmrtd = [\"" + mrtd + "\"]\nrtmr0 = \"profile:td\"\nhost-acpi = \"accept\"\nchips = [\"" +
		strings.Repeat("99", 16) + "\"]\n"
	j.write("td.toml", policy)
	j.refused("policy check td.toml", cli.ExitUsage, `td.rtmr0.json`)
	boot := func(cmdline string) *ccel.Log {
		events := []ccel.Event{
			evidencetest.Hashed(0, 1, []byte("settings")), evidencetest.Hashed(0, 4, make([]byte, 4)),
		}
		for i := range 3 {
			table := evidencetest.Hashed(0, 0x0a, fmt.Appendf(nil, "table %d for %s", i, cmdline))
			table.Data = []byte("ACPI DATA")
			events = append(events, table)
		}
		events = append(events, evidencetest.DirectBoot([]byte(kernel), []byte("an initrd"), cmdline)...)
		return &ccel.Log{Events: events}
	}
	show := func(cmdline string) {
		l := boot(cmdline)
		j.write("CCEL", string(evidencetest.Log(l.Events...)))
		r := l.Replay()
		j.write("quote.bin", string(j.platform.Quote(t, func(q *evidencetest.QuoteParts) {
			for i := range r {
				copy(q.Body[evidencetest.OffRTMR0+48*i:], r[i][:])
			}
		})))
	}
	show("console=ttyS0")
	profile, errs := j.run("policy rtmr0 CCEL --quote quote.bin")
	matches(t, "rtmr0", errs, `5 measurements; left open for the host's ACPI tables: 3 4 5`)
	j.write("td.rtmr0.json", profile)
	out, _ := j.run("policy check td.toml")
	matches(
		t,
		"check",
		out,
		`RTMR1 +[0-9a-f]{96} +kernel, profile edk2-2026.08\n.*RTMR2 +[0-9a-f]{96} +cmdline, initrd`,
	)
	line := "quote verify quote.bin --policy td.toml --bundle bundle.json --event-log CCEL"
	out, _ = j.run(line + at)
	matches(
		t,
		"accepted",
		out,
		`accepted by policy td-emulated[^!]*UpToDate[^!]*your kernel, command line and initrd[^!]*RTMR0`,
	)
	if v := j.verdict(line, cli.ExitOK); v["event-log-matches"] != true {
		t.Errorf("verdict %v", v)
	}
	j.refused(strings.TrimSuffix(line, " --event-log CCEL")+at, cli.ExitRefused, `needs the boot's event log`)
	bare := strings.TrimSuffix(line, " --event-log CCEL")
	if v := j.verdict(bare, cli.ExitRefused); reason(v) != "event-log-missing" {
		t.Errorf("verdict %v", v)
	}
	posing := boot("console=ttyS0")
	posing.Events[0].Type, posing.Events[0].Data = 0x0a, []byte("ACPI DATA")
	j.write("posing", string(evidencetest.Log(posing.Events...)))
	tpm := boot("console=ttyS0")
	tpm.Events[3].Register = 8 // PCR 9
	j.write("tpm", string(evidencetest.Log(tpm.Events...)))
	j.refused("policy rtmr0 tpm", cli.ExitRefused, `log of a TPM`)
	j.refused("policy check td.toml --quote quote.bin", cli.ExitUsage, `--quote is for rtmr0`)
	j.refused("policy rtmr0 posing --quote quote.bin", cli.ExitRefused, `measurements \[1 3 4 5\]`)
	show("console=ttyS0 init=/bin/sh")
	j.refused(
		line+at,
		cli.ExitRefused,
		`RTMR2[^!]*command line is not yours: it was "initrd=initrd console=ttyS0 init=/bin/sh"`,
	)
	j.write("CCEL", "noise")
	if v := j.verdict(line, cli.ExitRefused); reason(v) != "rtmr" {
		t.Errorf("verdict %v", v)
	}
	j.refused("policy rtmr0 CCEL", cli.ExitRefused, `event log cannot be read`)
}

// peKernel is the smallest image that firmware would start.
func peKernel() string {
	b := make([]byte, 0x200)
	copy(b, "MZ")
	b[0x3c], b[0x54] = 0x40, 0xf0
	copy(b[0x40:], "PE\x00\x00")
	b[0x58], b[0x59], b[0x58+61] = 0x0b, 0x02, 2
	return string(b) + "a kernel"
}
