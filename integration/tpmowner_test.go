package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/tpm/tpmtest"
)

// desk is an owner's desk, a host, and a guest's TPM outside of its guest.
type desk struct {
	*host
	guest string // the socket of the guest's TPM
	own   string // and of the owner's
}

// newDesk makes a VM's TPM as its first start does.
func newDesk(t *testing.T) *desk {
	t.Helper()
	d := &desk{host: newTPMHost(t, "PATH="+os.Getenv("PATH"), ""), own: tpmtest.Start(t)}
	d.run("vmlatch", "start", "--hold", "vm.toml")
	d.run("vmlatch", "stop", "vm", "--now")
	d.write("vm.srk", d.run("vmlatch", "tpm", "srk", "vm"))
	d.write("tpm-ca.pem", d.run("vmlatch", "tpm", "ca"))
	d.guest = tpmtest.StartOn(t, filepath.Join(d.work, "state/vm/tpm"))
	return d
}

// inGuest runs a command of the guest's.
func (d *desk) inGuest(args ...string) string {
	d.t.Helper()
	return d.run("latchguest-tpm", append(args, "--tpm", d.guest)...)
}

// refused runs a command that must fail with a code, saying something.
func (d *desk) refused(code int, want, program string, args ...string) {
	d.t.Helper()
	cmd := d.command(program, args...)
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.ExitCode() != code || !strings.Contains(string(out), want) {
		d.t.Errorf("%s %v: code %d, want %d and %q: %s", program, args, cmd.ProcessState.ExitCode(), code, want, out)
	}
}

const aNonce = "00112233445566778899aabbccddeeff"

// TestQuoteStory: an owner comes to know a TPM by its host's CA, and verifies its quotes.
func TestQuoteStory(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.write("identity", d.inGuest("identity"))
	d.run("latchkey", "tpm", "credential", "make", "identity", "--tpm-root", "tpm-ca.pem", "--out", "challenge",
		"--keep", "pending")
	answer := strings.TrimSpace(d.inGuest("activate", "challenge"))
	d.refused(
		4,
		"the answer is wrong",
		"latchkey",
		"tpm",
		"credential",
		"check",
		strings.Repeat("0", 64),
		"--keep",
		"pending",
		"--out",
		"ak",
	)
	d.run("latchkey", "tpm", "credential", "check", answer, "--keep", "pending", "--out", "ak")

	d.write("quote", d.inGuest("quote", "--nonce", aNonce, "--log", ""))
	verify := []string{"tpm", "quote", "quote", "--ak", "ak", "--nonce", aNonce}
	d.shows("quote", d.run("latchkey", verify...), "accepted: the TPM has signed", "trust: host")
	d.shows("quote", d.run("latchkey", append(verify, "--json")...), `"trust": "host"`, `"verdict": "accepted"`)
	zero := strings.Repeat("0", 64)
	d.write("expected", "PCR CERTAINTY SHA256\n4 exact "+zero+"\n9 exact "+zero+"\n15 exact "+zero+"\n")
	d.shows("quote", d.run("latchkey", append(verify, "--expect", "expected", "--pcrs", "4,9,15")...),
		"PCR 4,9,15 are as expected")
	d.write("others", "PCR CERTAINTY SHA256\n4 exact "+strings.Repeat("1", 64)+"\n")
	d.refused(4, "PCR 4 (the kernel", "latchkey", append(verify, "--expect", "others", "--pcrs", "4")...)
	d.refused(4, "another challenge", "latchkey", "tpm", "quote", "quote", "--ak", "ak", "--nonce", aNonce+"00")
	d.refused(2, "8 bytes or more", "latchkey", "tpm", "quote", "quote", "--ak", "ak", "--nonce", "00")
	text := read(t, filepath.Join(d.work, "quote"))
	d.write("forged", strings.Replace(text, zero, strings.Repeat("1", 64), 1))
	d.refused(4, "other values are signed", "latchkey", "tpm", "quote", "forged", "--ak", "ak", "--nonce", aNonce)

	// A TPM of another host, whose CA this owner has not named.
	other := newDesk(t)
	d.write("stranger", other.inGuest("identity"))
	d.refused(4, "certificate signed by unknown authority", "latchkey", "tpm", "credential", "make", "stranger",
		"--tpm-root", "tpm-ca.pem", "--out", "x", "--keep", "y")
	d.refused(
		1,
		"it is for another TPM",
		"latchguest-tpm",
		"activate",
		filepath.Join(d.work, "challenge"),
		"--tpm",
		other.guest,
	)
	d.write("quote", other.inGuest("quote", "--nonce", aNonce, "--log", ""))
	d.refused(4, "another attestation key", "latchkey", verify...)
}

// TestSealStory: what an owner seals far from the TPM, the TPM gives.
func TestSealStory(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	zero := strings.Repeat("0", 64)
	d.write(
		"expected",
		"PCR CERTAINTY SHA256\n4 exact "+zero+"\n9 exact "+zero+"\n10 exact "+zero+"\n15 exact "+zero+"\n",
	)
	boot := []string{"--expect", "expected", "--pcrs", "4,9,15"}
	pin := saidPin.FindStringSubmatch(d.run("latchkey", "tpm", "pin", "--generate", "key"))
	if pin == nil {
		t.Fatal("no pin")
	}
	if again := d.run("latchkey", "tpm", "pin", "key"); again != pin[0]+"\n" {
		t.Errorf("the pin is %s, and was %s", again, pin[0])
	}
	d.refused(2, "exists", "latchkey", "tpm", "pin", "--generate", "key")
	d.run("latchkey", append([]string{
		"tpm", "seal", "--srk", "vm.srk", "--name", "web", "--in", "key", "--out", "sealed",
	}, boot...)...)
	key := read(t, filepath.Join(d.work, "key"))
	if got := d.inGuest("unseal", "sealed", "--pin", pin[1]); got != key || len(key) != 64 {
		t.Errorf("unsealed %q, want %q", got, key)
	}
	d.refused(
		4,
		"a different secret",
		"latchguest-tpm",
		"unseal",
		"sealed",
		"--tpm",
		d.guest,
		"--pin",
		strings.Repeat("0", 32),
	)

	// A key in the owner's own TPM approves boots.
	d.run("latchkey", "tpm", "key", "approver.pem", "--in-tpm", "--tpm", d.own)
	d.run(
		"latchkey",
		"tpm",
		"seal",
		"--srk",
		"vm.srk",
		"--name",
		"web",
		"--in",
		"key",
		"--approver",
		"approver.pem.pub",
		"--out",
		"approved",
	)
	d.refused(4, "no boot is approved", "latchguest-tpm", "unseal", "approved", "--tpm", d.guest)
	approve := func(version, out string) {
		d.run("latchkey", append([]string{
			"tpm", "approve", "--key", "tpm:approver.pem", "--tpm", d.own, "--name", "web", "--version", version,
			"--out", out,
		}, boot...)...)
	}
	approve("1", "1.approval")
	if got := d.inGuest("unseal", "approved", "1.approval"); got != key {
		t.Errorf("approved: %q", got)
	}
	d.inGuest("revoke", "2")
	d.refused(4, "version 1 was ended", "latchguest-tpm", "unseal", "approved", "1.approval", "--tpm", d.guest)
	approve("2", "2.approval")
	if got := d.inGuest("unseal", "approved", "1.approval", "2.approval"); got != key {
		t.Errorf("approved again: %q", got)
	}
	d.inGuest("unseal", "sealed", "--close")
	d.refused(4, "unsealed already", "latchguest-tpm", "unseal", "sealed", "--tpm", d.guest)

	for _, x := range []struct {
		want string
		args []string
	}{
		{"not the public part of", []string{"--srk", "key", "--in", "key", "--expect", "expected", "--pcrs", "4"}},
		{"PCR 10 holds", []string{"--srk", "vm.srk", "--in", "key", "--expect", "expected", "--pcrs", "4,10"}},
		{"no value of PCR 5", []string{"--srk", "vm.srk", "--in", "key", "--expect", "expected", "--pcrs", "4,5"}},
		{"no register that depends", []string{
			"--srk", "vm.srk", "--in", "key", "--expect", "expected", "--pcrs",
			"15",
		}},
		{"--approver and registers", []string{"--srk", "vm.srk", "--in", "key", "--approver", "x", "--pcrs", "4"}},
		{"what the guest boots is not named", []string{"--srk", "vm.srk", "--in", "key"}},
		{"--in is needed", []string{"--srk", "vm.srk", "--expect", "expected"}},
	} {
		d.refused(2, x.want, "latchkey", append([]string{"tpm", "seal", "--name", "web", "--out", "x"}, x.args...)...)
	}
	if _, err := os.Stat(filepath.Join(d.work, "x")); err == nil {
		t.Error("a refused seal leaves a file")
	}
}

// TestIDKeyInTPM: an ID block is signed by a key that is in the owner's TPM alone.
func TestIDKeyInTPM(t *testing.T) {
	t.Parallel()
	d := &desk{host: newHost(t), own: tpmtest.Start(t)}
	digest := strings.Repeat("5a", 48)
	d.run("latchkey", "tpm", "key", "id.pem", "--curve", "P-384", "--in-tpm", "--tpm", d.own)
	d.run("latchkey", "idblock", "make", "guest", "--id-key", "tpm:id.pem", "--tpm", d.own, "--digest", digest)
	d.run("latchkey", "idblock", "check", "guest", "--id-key", "tpm:id.pem", "--tpm", d.own, "--digest", digest)
	d.run("latchkey", "tpm", "key", "author.pem", "--curve", "P-384")
	d.run(
		"latchkey",
		"idblock",
		"make",
		"both",
		"--id-key",
		"tpm:id.pem",
		"--author-key",
		"author.pem",
		"--tpm",
		d.own,
		"--digest",
		digest,
	)
	d.run("latchkey", "idblock", "check", "both", "--author")
	d.run("latchkey", "tpm", "key", "inside.pem", "--curve", "P-384", "--in-tpm", "--tpm", d.own)
	d.run("latchkey", "idblock", "make", "inside", "--id-key", "tpm:id.pem", "--author-key", "tpm:inside.pem",
		"--tpm", d.own, "--digest", digest) // over one connection
	d.run("latchkey", "tpm", "key", "approver.pem")
	make := []string{"idblock", "make", "x", "--digest", digest, "--tpm", d.own, "--id-key"}
	d.refused(2, "P-256: must be P-384", "latchkey", append(make, "approver.pem")...)
	d.refused(2, "no such file", "latchkey", append(make, "tpm:none")...)
	d.refused(1, "nothing under this handle", "latchkey", append(make, "tpm:0x81000042")...)
	d.refused(1, "there is no TPM", "latchkey", "idblock", "make", "x", "--digest", digest, "--id-key", "tpm:id.pem",
		"--tpm", "/dev/no-tpm")
	other := tpmtest.Start(t)
	d.refused(
		1,
		"not made for this TPM",
		"latchkey",
		"idblock",
		"make",
		"x",
		"--digest",
		digest,
		"--id-key",
		"tpm:id.pem",
		"--tpm",
		other,
	)
	d.refused(2, "exists", "latchkey", "tpm", "key", "id.pem", "--curve", "P-384")
}

// TestKeptByTPM: a broker's key and an owner file are of use with the owner's TPM alone.
func TestKeptByTPM(t *testing.T) {
	t.Parallel()
	d := &desk{host: newHost(t), own: tpmtest.Start(t)}
	other := tpmtest.Start(t)
	pin := d.run("latchkey", "broker", "init", "keys", "--in-tpm", "--tpm", d.own)
	if !strings.HasPrefix(pin, "latch.key=ed25519:") ||
		pin != d.run("latchkey", "broker", "key", "keys", "--tpm", d.own) {
		t.Errorf("the pin is %s", pin)
	}
	d.refused(1, "sealed to another TPM", "latchkey", "broker", "key", "keys", "--tpm", other)
	d.refused(1, "there is no TPM", "latchkey", "broker", "key", "keys", "--tpm", "/dev/no-tpm")
	if text := read(t, filepath.Join(d.work, "keys/broker.key")); strings.Contains(text, "PRIVATE KEY") {
		t.Errorf("the key's file has the key: %s", text)
	}
	d.write("keys/broker.key", "{}")
	d.refused(1, "not sealed by latchkey", "latchkey", "broker", "key", "keys", "--tpm", d.own)

	d.run("latchkey", "tpm", "keep", "owner.tpm", "--tpm", d.own)
	d.refused(2, "exists", "latchkey", "tpm", "keep", "owner.tpm", "--tpm", d.own)
	d.session()
	d.run(
		"latchkey",
		"session",
		"--force",
		"--platform",
		"platform.json",
		"--cek",
		"cek.cert",
		"--trust-root",
		"root.pem",
		"--out",
		".",
		"--passphrase-file",
		"tpm:owner.tpm",
		"--tpm",
		d.own,
	)
	if text := read(t, filepath.Join(d.work, "guest.owner")); !strings.Contains(text, "AGE ENCRYPTED FILE") {
		t.Errorf("the owner file is not encrypted: %s", text)
	}
	d.write(
		"measurement.json",
		`{"schema":"vmlatch.measurement/1","name":"vm","technology":"sev","emulated":true,"policy":1,`+
			`"measurement":"`+strings.Repeat("A", 64)+`"}`,
	)
	verify := []string{
		"verify", "--owner", "guest.owner", "--measurement", "measurement.json", "--firmware", "x",
		"--passphrase-file", "tpm:owner.tpm", "--tpm",
	}
	d.refused(2, "sealed to another TPM", "latchkey", append(verify, other)...)
}
