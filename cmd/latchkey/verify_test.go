//go:build linux

// These tests need swtee, which is for Linux, as their platform.

package main

import (
	"crypto/sha256"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/exchange"
	"github.com/vmlatch/vmlatch/firmware/sev/session"
	"github.com/vmlatch/vmlatch/firmware/sev/table"
)

const (
	verifyLine = "verify --owner guest.owner --measurement measurement.json "
	secretLine = "secret --owner guest.owner --measurement measurement.json --out packet.json "
	withKernel = "--firmware OVMF.fd --kernel vmlinuz --initrd initrd --cmdline quiet "
)

func TestVerify(t *testing.T) {
	d := newDesk(t)
	d.session("guest")
	g := d.launch("guest", sev.PolicyDefault, d.read("OVMF.fd"), d.kernelHashes("vmlinuz", "initrd", "quiet"))
	out, _ := d.run(verifyLine + withKernel)
	if !strings.HasPrefix(out, "verified (emulated platform: protects nothing)\n") {
		t.Errorf("it printed %q, want verified and emulated", out)
	}
	digest := g.LaunchDigest()
	if got, want := row(t, out, "launch digest"), hexOf(digest[:]); got != want {
		t.Errorf("launch digest %s, want %s", got, want)
	}
	var o ownerFile
	must(t, json.Unmarshal(d.read("guest.owner"), &o))
	if o.Verified == nil || o.Verified.Hex != hexOf(digest[:]) {
		t.Errorf("the owner file keeps %+v, want the digest %x", o.Verified, digest)
	}
	var verdict struct {
		Schema   string
		Verified bool
		Emulated bool
		Expected string `json:"expected-digest"`
		Policy   sev.Policy
	}
	out, _ = d.run(verifyLine + withKernel + "--json")
	must(t, json.Unmarshal([]byte(out), &verdict))
	if verdict.Schema != "latchkey.verdict/1" || !verdict.Verified || !verdict.Emulated ||
		verdict.Expected != hexOf(digest[:]) {
		t.Errorf("verdict %+v, want a verified one of %x", verdict, digest)
	}
	// The measurement may come from a pipe.
	d.in = string(d.read("measurement.json"))
	d.run("verify --owner guest.owner --measurement - " + withKernel)
}

// TestOpenPolicies: what a policy leaves to the host is said by session, verify and secret.
func TestOpenPolicies(t *testing.T) {
	d := newDesk(t)
	d.session("guest", "--policy api=1.55 --allow-debug --allow-key-sharing --allow-send")
	policy, err := sev.ParsePolicy("api=1.55")
	must(t, err)
	d.launch("guest", policy, d.read("OVMF.fd"), nil)
	out, _ := d.run(verifyLine + "--firmware OVMF.fd")
	_, errs := d.run(secretLine + "--entry disk=passphrase")
	for what, text := range map[string]string{"verify": out, "secret": errs} {
		matches(
			t,
			what,
			text,
			`open(.|\n)*no-debug is missing(.|\n)*no-key-sharing is missing(.|\n)*no-send is missing`,
		)
	}
	d.session("sealed", "--policy es")
	d.launch("sealed", sev.PolicyDefault|sev.PolicyES, d.read("OVMF.fd"), nil)
	out, _ = d.run(strings.ReplaceAll(verifyLine, "guest", "sealed") + "--firmware OVMF.fd --cpu EPYC-Milan")
	if strings.Contains(out, "left open") {
		t.Errorf("the strictest policy: %s\nwant that it leaves nothing open", out)
	}
}

func TestVerifyES(t *testing.T) {
	d := newDesk(t)
	d.session("guest", "--policy es")
	d.launch("guest", sev.PolicyDefault|sev.PolicyES, d.read("OVMF.fd"), nil)
	d.run(verifyLine + "--firmware OVMF.fd --cpu EPYC-Milan")
	d.refused(verifyLine+"--firmware OVMF.fd", cli.ExitUsage,
		`--cpu is needed.*\nhint: models: EPYC, .*\nhint: any other model`)
	d.refused(verifyLine+"--firmware OVMF.fd --cpu EPYC", cli.ExitRefused, `does NOT match`)
}

// TestCauses: the input that differs is named if changing it makes the measurement match.
// The host's claims are never more than a suggestion.
func TestCauses(t *testing.T) {
	d := newDesk(t)
	d.session("guest")
	d.write("vmlinuz-other", "a different kernel")
	image := d.read("OVMF.fd")
	kernel := d.kernelHashes("vmlinuz", "initrd", "quiet")
	g := d.launch("guest", sev.PolicyDefault, image, kernel)
	const differs = ` differs: the platform measured sha256 [0-9a-f]{64}, yours is [0-9a-f]{64}`
	for _, c := range []struct {
		args string
		code cli.ExitCode
		want string
	}{
		{
			"--firmware OVMF.fd --kernel vmlinuz-other --initrd initrd --cmdline quiet",
			cli.ExitRefused, `hint: cause: the kernel` + differs,
		},
		{
			"--firmware OVMF.fd --kernel vmlinuz --initrd passphrase --cmdline quiet",
			cli.ExitRefused, `hint: cause: the initrd` + differs,
		},
		{
			"--firmware OVMF.fd --kernel vmlinuz --initrd initrd --cmdline loud",
			cli.ExitRefused, `hint: cause: the command line` + differs,
		},
		{
			"--firmware OVMF.fd --kernel vmlinuz-other --initrd initrd",
			cli.ExitRefused, `the kernel` + differs + `; the command line` + differs,
		},
		{
			"--firmware OVMF.fd",
			cli.ExitRefused, `hint: cause: the host had a kernel measured, but you named no kernel`,
		},
		{
			"--firmware generic.fd --kernel vmlinuz --initrd initrd --cmdline quiet",
			cli.ExitUsage, `no area for kernel hashes`,
		},
	} {
		d.refused(verifyLine+c.args, c.code, c.want)
	}
	var reason struct {
		Verified bool
		Reason   string
		Causes   []string
	}
	code, out, errs := d.try(verifyLine + "--firmware OVMF.fd --json")
	must(t, json.Unmarshal([]byte(out), &reason))
	if code != cli.ExitRefused || errs != "" || reason.Verified || reason.Reason != errMismatch.Error() ||
		len(reason.Causes) != 1 {
		t.Errorf("code %d, %+v, stderr %q, want a reason and one cause in JSON alone", code, reason, errs)
	}

	change := func(f func(*exchange.Measurement)) {
		m := g.measurement
		c := *m.Claims
		m.Claims = &c
		f(&m)
		d.writeJSON("measurement.json", m)
	}
	change(func(m *exchange.Measurement) { m.Claims = nil })
	d.refused(verifyLine+"--firmware OVMF.fd", cli.ExitRefused,
		`hint: the cause cannot be determined: the host does not say`)
	change(func(m *exchange.Measurement) { m.Claims.Kernel = nil; m.Claims.Firmware[0] ^= 1 })
	d.refused(verifyLine+"--firmware OVMF.fd", cli.ExitRefused,
		`hint: the host says that it loaded a different firmware: sha256`)
	change(func(m *exchange.Measurement) { m.Claims.Kernel = nil })
	d.refused(verifyLine+"--firmware OVMF.fd", cli.ExitRefused,
		`hint: the host claims to have loaded your files, but.*\nhint: the measurement may be of another session`)
	change(func(m *exchange.Measurement) { k := *kernel; k.Kernel[0] ^= 1; m.Claims.Kernel = &k })
	d.refused(verifyLine+"--firmware OVMF.fd --kernel vmlinuz-other", cli.ExitRefused, `hint: the host claims`)
}

func TestCauseIsKernelHashesOff(t *testing.T) {
	d := newDesk(t)
	d.session("guest")
	d.launch("guest", sev.PolicyDefault, d.read("OVMF.fd"), nil)
	d.refused(verifyLine+withKernel, cli.ExitRefused,
		`hint: cause: the host did not have the kernel measured: kernel-hashes is off`)
}

// TestCauseIsThePolicy: the platform measured a policy other than the session's, which
// real firmware does not allow.
func TestCauseIsThePolicy(t *testing.T) {
	d := newDesk(t)
	d.session("guest")
	g := d.launch("guest", sev.PolicyDefault, d.read("OVMF.fd"), nil)
	var o ownerFile
	must(t, json.Unmarshal(d.read("guest.owner"), &o))
	keys := o.keys()
	m := g.measurement
	m.Policy = 0
	blob, err := sev.ParseMeasurement(m.Measurement)
	must(t, err)
	blob.MAC = keys.LaunchMAC(m.Firmware, m.Policy, g.LaunchDigest(), blob.Nonce)
	m.Measurement = blob.Bytes()
	d.writeJSON("measurement.json", m)
	d.refused(verifyLine+"--firmware OVMF.fd", cli.ExitRefused,
		`cause: the policy is 0x0 \(\) instead of your session's 0xb \(no-debug,no-key-sharing,no-send\)`)
}

func TestVerifyRefusals(t *testing.T) {
	d := newDesk(t)
	d.session("guest")
	d.launch("guest", sev.PolicyDefault, d.read("OVMF.fd"), nil)
	d.write("text", "no measurement")
	for args, want := range map[string]string{
		"verify":                     `--owner is needed\nhint: "latchkey verify --help"`,
		"verify --owner guest.owner": `--measurement is needed`,
		"verify more":                `unexpected argument "more"`,
		"verify --owner guest.owner --measurement missing --firmware OVMF.fd": `no such file`,
		"verify --owner guest.owner --measurement text --firmware OVMF.fd":    `malformed`,
		verifyLine:                                              `--firmware is needed: the digest covers it`,
		verifyLine + "--firmware missing":                       `no such file`,
		verifyLine + "--firmware OVMF.fd --cpu EPYC":            `--cpu: a digest of sev covers no registers`,
		verifyLine + "--firmware OVMF.fd --cmdline x":           `measured only with a --kernel`,
		verifyLine + "--firmware OVMF.fd --kernel missing":      `no such file`,
		verifyLine + "--firmware OVMF.fd --vmm qmeu --cpu EPYC": `--vmm: unknown VMM "qmeu": did you mean "qemu"\?`,
	} {
		d.refused(args, cli.ExitUsage, want)
	}
	d.refused(verifyLine+"--firmware generic.fd --kernel vmlinuz",
		cli.ExitUsage, `no area for kernel hashes.*\nhint: only AmdSev builds`)
	d.refused(verifyLine+"--firmware OVMF.fd --vmsa lagacy --cpu EPYC",
		cli.ExitUsage, `unknown VMSA profile "lagacy": did you mean "legacy"\?`)
}

func TestSecret(t *testing.T) {
	d := newDesk(t)
	d.session("guest")
	g := d.launch("guest", sev.PolicyDefault, d.read("OVMF.fd"), nil)
	d.refused(secretLine+"--entry disk=passphrase", cli.ExitRefused,
		`no launch of this session has been verified\nhint: run "latchkey verify"`)
	d.run(verifyLine + "--firmware OVMF.fd")
	_, errs := d.run(secretLine + "--entry disk=passphrase --entry 00000000-1111-2222-3333-444444444444=initrd")
	matches(t, "secret", errs,
		`packed the secret for vm \(emulated platform: protects nothing\); this session is now used up`)
	packet, err := exchange.ParsePacket(d.read("packet.json"))
	must(t, err)
	plain, err := g.LaunchSecret(packet.Header, packet.Secret, len(packet.Secret))
	must(t, err)
	entries, err := table.Parse(plain)
	must(t, err)
	if len(entries) != 2 || entries[0].GUID != table.GUIDDiskPassphrase ||
		string(entries[0].Data) != "correct horse" || string(entries[1].Data) != "an initrd" {
		t.Errorf("the platform decrypted %+v, want the passphrase and the second file", entries)
	}
	// One session gives out one secret.
	d.refused(strings.Replace(secretLine, "packet", "second", 1)+"--entry disk=passphrase", cli.ExitRefused,
		`given out its secret already.*\nhint: a host that kept the old packet`)
	if _, err := os.Stat("second.json"); err == nil {
		t.Error("a refused secret left a packet")
	}
}

func TestSecretVerifiesByItself(t *testing.T) {
	d := newDesk(t)
	d.session("guest")
	d.launch("guest", sev.PolicyDefault, d.read("OVMF.fd"), nil)
	d.refused(secretLine+"--entry disk=passphrase "+withKernel, cli.ExitRefused,
		`does NOT match your files\nhint: cause: .*kernel-hashes is off`)
	out, _ := d.run(strings.Replace(secretLine, "packet.json", "-", 1) + "--firmware OVMF.fd --entry disk=passphrase")
	matches(t, "secret --out -", out, exchange.PacketSchema)
}

// TestSecretIsForTheVerifiedMeasurement: no secret is packed for a measurement other than
// the one that was verified.
func TestSecretIsForTheVerifiedMeasurement(t *testing.T) {
	d := newDesk(t)
	d.session("guest")
	d.launch("guest", sev.PolicyDefault, d.read("OVMF.fd"), nil)
	d.run(verifyLine + "--firmware OVMF.fd")
	d.launch("guest", sev.PolicyDefault, d.read("generic.fd"), nil)
	d.refused(secretLine+"--entry disk=passphrase", cli.ExitRefused,
		`does NOT match your files\nhint: this is not the measurement that was verified`)
}

// TestSecretNeedsAnArea: a firmware without an area for secrets uses no session up.
func TestSecretNeedsAnArea(t *testing.T) {
	d := newDesk(t)
	d.session("guest")
	d.launch("guest", sev.PolicyDefault, d.read("generic.fd"), nil)
	d.run(verifyLine + "--firmware generic.fd")
	d.refused(secretLine+"--entry disk=passphrase", cli.ExitUsage, `no area for secrets`)
	d.refused(secretLine+"--entry disk=passphrase --firmware generic.fd", cli.ExitUsage, `no area for secrets`)
	var o ownerFile
	must(t, json.Unmarshal(d.read("guest.owner"), &o))
	if o.Used != nil {
		t.Error("the session counts as used")
	}
}

// TestPassphraseEnds: what an editor leaves at a passphrase's end is named, and sent.
func TestPassphraseEnds(t *testing.T) {
	for text, want := range map[string]string{
		"a\n": "a newline", "a\r": "a carriage return", "a ": "a blank", "a\t": "a tab", "a": "", " a": "",
	} {
		t.Run(want, func(t *testing.T) {
			d := newDesk(t)
			d.session("guest")
			d.launch("guest", sev.PolicyDefault, d.read("OVMF.fd"), nil)
			d.run(verifyLine + "--firmware OVMF.fd")
			d.write("passphrase", text)
			_, errs := d.run(secretLine + "--entry disk=passphrase")
			if said := strings.Contains(errs, "warning: passphrase ends in"); said != (want != "") ||
				!strings.Contains(errs, want) {
				t.Errorf("%q: it said %q, want %q in it", text, errs, want)
			}
		})
	}
}

func TestSecretRefusals(t *testing.T) {
	d := newDesk(t)
	d.session("guest")
	d.launch("guest", sev.PolicyDefault, d.read("OVMF.fd"), nil)
	d.run(verifyLine + "--firmware OVMF.fd")
	d.write("empty", "")
	d.write("large", strings.Repeat("x", session.MaxSecret+1))
	d.write("area", strings.Repeat("x", 4096))
	before := string(d.read("guest.owner"))
	entry := "--entry disk=passphrase "
	for args, want := range map[string]string{
		"secret":                            `--owner is needed\nhint: "latchkey secret --help"`,
		"secret --owner guest.owner":        `--measurement is needed`,
		"secret more":                       `unexpected argument "more"`,
		secretLine:                          `--entry is needed: GUID=FILE`,
		secretLine + "--entry disk":         `--entry "disk": must be GUID=FILE`,
		secretLine + "--entry d=file":       `--entry: .*\nhint: the only short name is "disk"`,
		secretLine + "--entry disk=missing": `no such file`,
		secretLine + "--entry disk=empty":   `empty: empty`,
		secretLine + "--entry disk=large":   `large: too large: more than 16384 bytes`,

		secretLine + "--firmware OVMF.fd --entry disk=area": `room for 3072 bytes of secrets, but these take`,
		secretLine + "--entry disk=area":                    `room for 3072 bytes of secrets, but these take 4144`,
		secretLine + "--cmdline x " + entry:                 `--firmware is needed`,

		strings.Replace(secretLine, "packet.json", "guest.owner", 1) + entry:          `is the owner file`,
		strings.Replace(secretLine, "packet.json", "missing/packet", 1) + entry:       `no such file`,
		strings.Replace(secretLine, "guest.owner", "missing", 1) + entry:              `no such file`,
		strings.Replace(secretLine, "guest.owner", "missing", 1) + withKernel + entry: `no such file`,
		"secret --owner guest.owner --measurement missing --out packet.json " + entry: `no such file`,

		secretLine + entry + "--firmware OVMF.fd --vmm x": `unknown VMM "x": must be qemu, ec2 or gce`,
	} {
		d.refused(args, cli.ExitUsage, want)
	}
	if after := string(d.read("guest.owner")); after != before {
		t.Error("a mistake on the command line used the session up")
	}
}

// White space is the difference that is not seen.
func TestDiffersInBlanks(t *testing.T) {
	measured := func(line string) [32]byte { return sha256.Sum256([]byte(line + "\x00")) }
	for _, c := range []struct {
		own, measured string
		want          bool
	}{
		{"quiet ", "quiet", true},
		{"quiet", "quiet ", true},
		{"quiet", "quiet\n", true},
		{"a  b", "a b", true},
		{"quiet", "quiet", false},
		{"quiet", "loud", false},
	} {
		if got := differsInBlanks(c.own, measured(c.measured)); got != c.want {
			t.Errorf("%q for %q: %t, want %t", c.own, c.measured, got, c.want)
		}
	}
}
