//go:build linux

// These tests need swtee, which is for Linux, as their platform.

package main

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/exchange"
)

const bare = "session --platform platform.json --trust-root root.pem --out . "

// TestUnsignedCEK: a platform as it exports itself is refused with the address of the
// signed certificate, and accepted with it.
func TestUnsignedCEK(t *testing.T) {
	d := newDesk(t)
	id := hexOf(d.platform.ID())
	d.refused(
		bare,
		cli.ExitRefused,
		`carries no signature, as platforms export it\nhint: AMD publishes the signed one: `+
			`https://kdsintf\.amd\.com/cek/id/`+id+`\nhint: save it and name it with --cek FILE`,
	)
	p := platformOf(d)
	p.CPU0ID = nil
	d.writeJSON("old.json", p)
	d.refused(strings.Replace(bare, "platform.json", "old.json", 1), cli.ExitRefused,
		`this file has no chip ID.*\nhint: ask the host for the ID.*sevctl`)
	p.CPU0ID = []byte("8 bytes.")
	d.writeJSON("short.json", p)
	d.refused(strings.Replace(bare, "platform.json", "short.json", 1), cli.ExitRefused,
		`this file has a chip ID of 8 bytes, not 64`)
	for name, b := range map[string][]byte{
		"empty": {}, "oca": d.platform.Chain().OCA.Bytes(), "unsigned": d.platform.Chain().CEK.Bytes(),
		"long": append(d.platform.SignedCEK(), 0),
	} {
		d.write("other.cert", string(b))
		d.refused(bare+"--cek other.cert", cli.ExitRefused, `--cek other\.cert: .*certificate`)
		if t.Failed() {
			t.Fatal(name)
		}
	}
	d.refused(bare+"--cek missing", cli.ExitUsage, `no such file`)
	flipped := d.platform.SignedCEK()
	flipped[1100] ^= 1
	d.write("flipped.cert", string(flipped))
	d.refused(bare+"--cek flipped.cert", cli.ExitRefused, `no trusted root`)
	d.run(bare + "--cek cek.cert")
	// The host may have put it into its file.
	chain, err := d.platform.Chain().WithCEK(d.platform.SignedCEK())
	must(t, err)
	p.CertChain = chain.Bytes()
	d.writeJSON("platform.json", p)
	d.run(bare + "--name second")
}

func platformOf(d *desk) exchange.Platform {
	d.t.Helper()
	var p exchange.Platform
	must(d.t, json.Unmarshal(d.read("platform.json"), &p))
	return p
}

func TestPlatformShow(t *testing.T) {
	d := newDesk(t)
	id := hexOf(d.platform.ID())
	out, _ := d.run("platform show platform.json")
	matches(t, "platform show", out, `verified +no: .*no signature(.*\n)+firmware API +1\.55\nchip ID +`+id+`(.*\n)+`+
		`CEK signed +no, as platforms export it\nsigned CEK +https://kdsintf.amd.com/cek/id/`+id)
	out, _ = d.run("platform show platform.json --cek cek.cert --trust-root root.pem --json")
	var got struct {
		Schema, Product, API string
		Verified, Emulated   bool
		Signed               bool   `json:"cek-signed"`
		Address              string `json:"cek-address"`
	}
	must(t, json.Unmarshal([]byte(out), &got))
	if got.Schema != "latchkey.platform/1" || !got.Verified || !got.Emulated || !got.Signed || got.API != "1.55" ||
		!strings.HasSuffix(got.Address, id) {
		t.Errorf("%+v, want a verified emulated platform of API 1.55", got)
	}
	d.refused("platform show missing", cli.ExitUsage, "no such file")
	d.refused("platform shwo platform.json", cli.ExitUsage, `did you mean "show"`)
	d.refused("platform show", cli.ExitUsage, `FILE`)
}

// TestDemands: what an owner asks of a platform beyond AMD's signature.
func TestDemands(t *testing.T) {
	d := newDesk(t)
	p := &platform{Platform: &exchange.Platform{}, chain: d.platform.Chain()}
	id, cek := hexOf(d.platform.ID()), p.cekDigest()
	other := "00" + id[2:]
	if id[:2] == "00" {
		other = "01" + id[2:]
	}
	line := bare + "--cek cek.cert --force "
	for args, want := range map[string]string{
		"--chip " + other:                     `another chip than --chip asks for: its ID is ` + id,
		"--chip " + other[:64]:                `another chip`,
		"--chip abcd":                         `--chip: must be 64 bytes in hex .* or 32`,
		"--chip xy":                           `--chip: must be`,
		"--min-api 1.56":                      `firmware has API 1\.55, and --min-api asks for 1\.56`,
		"--min-api 2.0":                       `--min-api asks for 2\.0`,
		"--min-api 1":                         `--min-api "1": an API version is written`,
		"--min-api 1.256":                     `an API version is written`,
		"--policy api=1.56":                   `the policy asks for api=1\.56, and the platform's firmware has 1\.55`,
		"--policy es,api=9.99 --min-api 1.50": `api=9\.99`,
		"--product milan":                     `is of the line the test root root\.pem, and --product asks for milan`,
		"--product mialn":                     `did you mean "milan"`,
		"--product milan,intel":               `unknown product line "intel"`,
	} {
		code, _, errs := d.try(line + args)
		if code != cli.ExitUsage && code != cli.ExitRefused {
			t.Errorf("%s: code %d, want 2 or 4", args, code)
		}
		matches(t, args, errs, want)
	}
	if _, err := os.Stat("guest.owner"); err == nil {
		t.Error("a refused session left an owner file")
	}
	d.run(line + "--chip " + id + " --min-api 1.55 --policy api=1.55")
	d.run(line + "--chip " + strings.ToUpper(cek) + " --min-api 1.2")
	root := sev.Root{Product: "genoa"}
	if err := (&demands{products: []string{"milan", "genoa"}}).met(p, root, sev.PolicyDefault); err != nil {
		t.Errorf("one of two lines: %v, want nil", err)
	}
}

// TestMinAPIAtLaunch: the firmware must not have become older since the session.
func TestMinAPIAtLaunch(t *testing.T) {
	d := newDesk(t)
	d.session("guest", "--min-api 1.55")
	g := d.launch("guest", sev.PolicyDefault, d.read("OVMF.fd"), nil)
	d.run(verifyLine + "--firmware OVMF.fd")
	var o ownerFile
	must(t, json.Unmarshal(d.read("guest.owner"), &o))
	keys, m := o.keys(), g.measurement
	m.Firmware.Minor--
	blob, err := sev.ParseMeasurement(m.Measurement)
	must(t, err)
	blob.MAC = keys.LaunchMAC(m.Firmware, m.Policy, g.LaunchDigest(), blob.Nonce)
	m.Measurement = blob.Bytes()
	d.writeJSON("measurement.json", m)
	d.refused(verifyLine+"--firmware OVMF.fd", cli.ExitRefused, `1\.54 build 24, older than the 1\.55`)
	d.refused(secretLine+"--entry disk=passphrase", cli.ExitRefused, `older than the 1\.55`)
}

// TestOwnerInASharedDirectory: keys are not written where others could exchange them.
func TestOwnerInASharedDirectory(t *testing.T) {
	d := newDesk(t)
	must(t, os.Mkdir("shared", 0o700))
	must(t, os.Chmod("shared", 0o777|os.ModeSticky))
	d.write("shared/.guest.owner.new", "planted")
	d.refused(strings.Replace(bare, "--out .", "--out shared", 1)+"--cek cek.cert", cli.ExitUsage,
		`shared: others can write to it.*\nhint: make a directory of your own`)
	if entries, _ := os.ReadDir("shared"); len(entries) != 1 {
		t.Errorf("left %v, want what was there", entries)
	}
}

// TestLeftovers: an owner's certificate with bytes behind its key, as real ones have.
func TestLeftovers(t *testing.T) {
	d := newDesk(t)
	oca := d.platform.Chain().OCA.Bytes()
	if n := bytes.Count(oca[1044-329:1044], []byte{0}); n > 300 {
		t.Errorf("%d of 329 bytes behind the key are zero", n)
	}
	d.run(bare + "--cek cek.cert")
	p := platformOf(d)
	_, _ = rand.Read(p.CertChain[sev.CertificateSize+1000 : sev.CertificateSize+1040]) // of the OCA, and not signed
	d.writeJSON("platform.json", p)
	d.refused(bare+"--cek cek.cert --name x", cli.ExitRefused, `OCA: signature by OCA does not verify`)
}
