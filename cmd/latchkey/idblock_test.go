//go:build linux

// These tests need swtee, which is for Linux, as their platform.

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/sev"
)

// writeKeys makes keys of every kind that a user may try.
func (d *desk) writeKeys() {
	d.t.Helper()
	block := func(name, kind string, der []byte, err error) {
		must(d.t, err)
		d.write(name, string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})))
	}
	ec := func(c elliptic.Curve) *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		must(d.t, err)
		return k
	}
	for _, name := range []string{"id.pem", "author.pem"} {
		der, err := x509.MarshalECPrivateKey(ec(elliptic.P384()))
		block(name, "EC PRIVATE KEY", der, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(ec(elliptic.P384()))
	block("pkcs8.pem", "PRIVATE KEY", der, err)
	der, err = x509.MarshalECPrivateKey(ec(elliptic.P256()))
	block("p256.pem", "EC PRIVATE KEY", der, err)
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	must(d.t, err)
	block("rsa.pem", "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(k), nil)
	block("encrypted.pem", "ENCRYPTED PRIVATE KEY", []byte("ciphertext"), nil)
	d.write("old-encrypted.pem", string(pem.EncodeToMemory(&pem.Block{
		Type: "EC PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED"}, Bytes: []byte("ciphertext"),
	})))
	block("nothing.pem", "CERTIFICATE", []byte("x"), nil)
}

var someDigest = strings.Repeat("5a", 48)

func TestIDBlock(t *testing.T) {
	d := newDesk(t)
	d.writeKeys()
	ids := "--family-id " + strings.Repeat("01", 16) + " --image-id " + strings.Repeat("02", 16)
	keys := "--id-key id.pem --author-key author.pem "
	out, errs := d.run("idblock make guest --svn 3 --digest " + someDigest + " " + keys + ids)
	matches(t, "make", errs, `wrote guest\.id-block and guest\.id-auth for the host`)
	for title, want := range map[string]string{
		"digest": someDigest, "policy": "0x30000 (smt)",
		"version, svn": "1, 3",
	} {
		if got := row(t, out, title); got != want {
			t.Errorf("%s: %s, want %s", title, got, want)
		}
	}
	id, err := sev.ParseIDBlock(d.base64("guest.id-block"))
	must(t, err)
	if id.SVN != 3 || id.Policy != uint64(sev.SNPPolicyDefault) || id.Digest.String() != someDigest {
		t.Errorf("the block is %+v, want the flags' values", id)
	}
	if id.FamilyID[0] != 1 || id.ImageID[0] != 2 {
		t.Errorf("family %x, image %x, want those of the flags", id.FamilyID, id.ImageID)
	}
	again, _ := d.run("idblock check guest --author --policy smt --svn 3 --digest " + someDigest + " " + keys + ids)
	if again != out {
		t.Errorf("check printed %q, want what make printed, %q", again, out)
	}
	var j struct {
		Schema string
		Author string `json:"author-key-digest"`
	}
	out, _ = d.run("idblock check guest --json")
	must(t, json.Unmarshal([]byte(out), &j))
	if j.Schema != "latchkey.idblock/1" || len(j.Author) != 96 {
		t.Errorf("check --json: %+v, want the author key's digest", j)
	}
	d.run("idblock make other --id-key pkcs8.pem --policy smt,debug --allow-debug --digest " + someDigest)
	d.refused("idblock check other --author", cli.ExitRefused, `author`)

	for args, want := range map[string]string{
		"--digest " + strings.Repeat("00", 48):    `for a different digest\nhint: it has ` + someDigest,
		"--policy smt,single-socket":              `for a different policy`,
		"--svn 4":                                 `for a different security version\nhint: it has 3`,
		"--family-id " + strings.Repeat("09", 16): `for a different family-id`,
		"--image-id 00":                           `for a different image-id`,
		"--id-key author.pem":                     `not signed by --id-key`,
		"--author-key id.pem":                     `not signed by --author-key`,
	} {
		d.refused("idblock check guest "+args, cli.ExitRefused, want)
	}
	must(t, os.Rename("other.id-block", "guest.id-block"))
	d.refused("idblock check guest", cli.ExitRefused, `the ID key did not sign this block`)
}

// TestKeysThatCannotBeRead: the error states what is wrong with a key, and the hint that
// shows how to make one never names the user's file.
func TestKeysThatCannotBeRead(t *testing.T) {
	d := newDesk(t)
	d.writeKeys()
	for file, want := range map[string]string{
		"p256.pem":          `curve P-256: must be P-384`,
		"rsa.pem":           `not an EC key`,
		"encrypted.pem":     `encrypted: only keys without a passphrase`,
		"old-encrypted.pem": `encrypted: only keys without a passphrase`,
		"nothing.pem":       `does not hold an EC private key in PEM`,
		"vmlinuz":           `does not hold an EC private key in PEM`,
	} {
		line := "idblock make x --id-key " + file + " --digest " + someDigest
		d.refused(line, cli.ExitUsage, want+`.*\nhint: make one: latchkey tpm key --curve P-384 new\.pem`)
		if _, _, errs := d.try(line); strings.Contains(errs, "-out "+file) {
			t.Errorf("the hint would overwrite %s: %s", file, errs)
		}
	}
}

func TestIDBlockRefusals(t *testing.T) {
	d := newDesk(t)
	d.writeKeys()
	d.run("idblock make guest --id-key id.pem --digest " + someDigest)
	d.write("text.id-block", "no base64!")
	d.write("short.id-block", "AAAA")
	d.write("alone.id-block", string(d.read("guest.id-block")))
	d.write("dir", "")
	with := " --id-key id.pem --digest " + someDigest
	for args, want := range map[string]string{
		"":                                 `make \| check is missing`,
		"make":                             `NAME is missing`,
		"maek x":                           `unknown action "maek": did you mean "make"\?`,
		"sign x":                           `unknown action "sign": must be make or check`,
		"make x":                           `--digest: must be 48 bytes in hex`,
		"make x --digest z":                `--digest: must be 48 bytes in hex`,
		"make x --digest " + someDigest:    `--id-key is needed.*\nhint: make one: latchkey tpm key --curve P-384`,
		"make x --policy smt,debug" + with: `debug lets the host read.*\nhint: use --allow-debug to sign it anyway`,
		"make x --policy no-debug" + with:  `unknown word "no-debug": must be smt`,
		"make x --svn 5000000000" + with:   `--svn 5000000000: must be at most 4294967295`,
		"make x --svn=-1" + with:           `--svn -1: must be a whole number, zero or more`,
		"make x --family-id 00" + with:     `--family-id: must be 16 bytes in hex`,
		"make x --id-key missing --digest " + someDigest: `no such file`,
		"make x --author-key missing" + with:             `no such file`,
		"make missing/x" + with:                          `no such file`,
		"check missing":                                  `no such file`,
		"check text":                                     `text\.id-block`,
		"check short":                                    `id block: 3 bytes`,
		"check alone":                                    `alone\.id-auth: no such file`,
		"check guest --policy xyz":                       `unknown word "xyz"`,
		"check guest --id-key missing":                   `no such file`,
	} {
		d.refused("idblock "+args, cli.ExitUsage, want)
	}
}
