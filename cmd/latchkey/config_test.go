//go:build linux

package main

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
)

// configSpec is a VM's spec with a configuration of its first boot.
const configSpec = "name = \"web\"\n[kernel]\nimage = \"/boot/vmlinuz\"\n" +
	"[config]\nuser-data = \"user-data\"\ncredentials = { token = \"token\" }\n"

// TestMeasureConfig: the digest covers the configuration, whatever else the spec says, and what
// differs is named.
func TestMeasureConfig(t *testing.T) {
	d := newDesk(t)
	d.write("user-data", "#cloud-config\n")
	d.write("other-data", "#cloud-config\nruncmd: [evil]\n")
	d.write("token", "a token")
	d.write("vm.toml", configSpec)
	d.write("alone.toml", "[config]\nuser-data = \"user-data\"\n")
	d.write("other.toml", "[config]\nuser-data = \"other-data\"\ncredentials = { token = \"token\" }\n")
	const line = snp + withKernel
	mine := d.measured(line + " --config vm.toml")
	for _, tt := range []struct{ seen, want string }{
		{line + " --config vm.toml", `nothing differs`},
		{line, `the configuration of the first boot differs: none was loaded`},
		{line + " --config alone.toml", `the configuration of the first boot differs: it lacks token`},
		{line + " --config other.toml", `the configuration of the first boot differs: user-data is other-data`},
	} {
		seen := d.measured(tt.seen)
		if (seen == mine) != (tt.want == `nothing differs`) {
			t.Errorf("%s: %s, and the owner's is %s", tt.seen, seen, mine)
		}
		out, _ := d.run("explain " + line + " --config vm.toml --other other-data --digest " + seen)
		matches(t, tt.seen, out, tt.want)
	}
	d.write("added.toml", "[config]\nuser-data = \"other-data\"\n")
	out, _ := d.run("explain " + line + " --other other-data --digest " + d.measured(line+" --config added.toml"))
	matches(t, "added by the host", out, `the configuration of the first boot differs: user-data is other-data`)
	d.write("bad.toml", "[config]\nuser-dat = \"user-data\"\n")
	for args, want := range map[string]string{
		"--config missing":              `--config: .*missing`,
		"--config bad.toml":             `unknown key user-dat`,
		"--config alone.toml --initrd=": `only with an --initrd`,
	} {
		d.refused("measure "+line+" "+args, cli.ExitUsage, want)
	}
	d.refused("measure "+snp+"--config vm.toml", cli.ExitUsage, `only with an --initrd`)
}

// TestPolicyConfig: a policy's [guest] names the configuration, reports without it are refused, and
// what is missing is said.
func TestPolicyConfig(t *testing.T) {
	j := newJudge(t)
	j.write("user-data", "#cloud-config\n")
	j.write("token", "a token")
	j.write("vm.toml", configSpec)
	j.write("cmdline", "console=ttyS0\n")
	policy := "schema = \"latch-policy/1\"\nname = \"web-emulated\"\n[emulated]\nroot = \"roots.pem\"\n" +
		"[guest]\nfirmware = \"OVMF.fd\"\nkernel = \"vmlinuz\"\ninitrd = \"initrd\"\nconfig = \"vm.toml\"\n" +
		"cmdline = \"cmdline\"\ncpus = 1\ncpu = \"EPYC-Milan\"\n[sev-snp]\npolicy = [\"smt\"]\n" +
		"host-acpi = \"accept\"\nchips = [\"" + hex.EncodeToString(j.ek.HWID) + "\"]\n"
	j.write("web.toml", policy)
	j.write("none.toml", strings.Replace(policy, "config = \"vm.toml\"\n", "", 1))
	out, _ := j.run("policy check web.toml")
	matches(t, "check", out, `OVMF.fd, vmlinuz, initrd, vm.toml, cmdline`)
	of := func(file string) []byte {
		out, _ := j.run("policy check " + file)
		digest, err := hex.DecodeString(strings.Fields(out)[2])
		must(t, err)
		return digest
	}
	line := "report verify report.bin --policy web.toml --bundle bundle.json --report-data " +
		strings.Repeat("da", 64) + at
	for file, want := range map[string]string{
		"web.toml":  `accepted by policy web-emulated`,
		"none.toml": `what differs: the configuration of the first boot differs: none was loaded`,
	} {
		digest := of(file)
		j.write("report.bin", string(j.ek.Report(t, func(b []byte) { copy(b[0x90:], digest) })))
		if file == "web.toml" {
			out, _ := j.run(line)
			matches(t, file, out, want)
			continue
		}
		j.refused(line, cli.ExitRefused, want)
	}
	j.write("bad.toml", strings.Replace(policy, "initrd = \"initrd\"\n", "", 1))
	j.refused("policy check bad.toml", cli.ExitUsage, `guest.initrd: is missing`)
	j.write("vm.toml", "[config]\nuser-data = \"missing\"\n")
	j.refused("policy check web.toml", cli.ExitUsage, `guest.config: .*missing`)
}
