//go:build linux

// These tests need swtee, which is for Linux, as their platform.

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/exchange"
)

func TestSession(t *testing.T) {
	d := newDesk(t)
	_, errs := d.run("session --platform platform.json --cek cek.cert --trust-root root.pem --out keys --name web")
	for _, want := range []string{
		"platform verified up to the test root root.pem (ARK sha256",
		"(emulated platform: protects nothing)",
		"wrote keys/web.godh and keys/web.session for the host, keys/web.owner for you: keep it",
	} {
		if !strings.Contains(errs, want) {
			t.Errorf("it said %q, want %q", errs, want)
		}
	}
	if info, err := os.Stat("keys/web.owner"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("owner file: mode %v, %v, want 0600", info.Mode(), err)
	}
	var o ownerFile
	if err := json.Unmarshal(d.read("keys/web.owner"), &o); err != nil {
		t.Fatal(err)
	}
	if o.Schema != ownerSchema || !o.Emulated || o.Policy != 0xb || o.Verified != nil || o.Used != nil {
		t.Errorf("owner file %+v, want an unused emulated session of policy 0xb", o)
	}
	// The host's halves fit the platform.
	d.session("guest")
	d.launch("guest", sev.PolicyDefault, d.read("OVMF.fd"), nil)
}

func TestSessionIsNotReplaced(t *testing.T) {
	d := newDesk(t)
	d.session("guest")
	before := string(d.read("guest.owner"))
	line := "session --platform platform.json --cek cek.cert --trust-root root.pem --out ."
	d.refused(
		line,
		cli.ExitUsage,
		`guest\.owner exists\nhint: --force replaces it.*\nhint: --name NAME makes a second`,
	)
	if after := string(d.read("guest.owner")); after != before {
		t.Error("a refused session changed the owner file")
	}
	d.run(line + " --force")
	if after := string(d.read("guest.owner")); after == before {
		t.Error("--force kept the old owner file")
	}
}

func TestSessionRefusals(t *testing.T) {
	d := newDesk(t)
	d.write("text", "no platform")
	d.write("key.pem", "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n")
	d.write("short.pem", "-----BEGIN SWTEE TEST ROOT-----\nAAAA\n-----END SWTEE TEST ROOT-----\n")
	d.write("file", "in the way of a directory")
	var p exchange.Platform
	if err := json.Unmarshal(d.read("platform.json"), &p); err != nil {
		t.Fatal(err)
	}
	p.PDH[100] ^= 1
	d.writeJSON("tampered.json", p)
	p.PDH = p.PDH[:100]
	d.writeJSON("short.json", p)
	for _, c := range []struct {
		args string
		code cli.ExitCode
		want string
	}{
		{"", cli.ExitUsage, `--platform is needed\nhint: "latchkey session --help" shows an example`},
		{"--platform platform.json --cek cek.cert", cli.ExitUsage, `--out is needed`},
		{"extra", cli.ExitUsage, `unexpected argument "extra"`},
		{
			"--platform platform.json --cek cek.cert --out .",
			cli.ExitRefused, `no trusted root\nhint: .*emulated.*\nhint: .*--trust-root FILE`,
		},
		{"--platform missing --out .", cli.ExitUsage, `no such file`},
		{"--platform text --out .", cli.ExitUsage, `hint: it is made by "vmlatch platform"`},
		{
			"--platform tampered.json --trust-root root.pem --out .",
			cli.ExitRefused, `hint: ask the host for its platform file again`,
		},
		{"--platform short.json --trust-root root.pem --out .", cli.ExitRefused, `certificate`},
		{"--platform platform.json --cek cek.cert --trust-root missing --out .", cli.ExitUsage, `no such file`},
		{
			"--platform platform.json --cek cek.cert --trust-root key.pem --out .",
			cli.ExitUsage, `key\.pem: does not hold a "SWTEE TEST ROOT"`,
		},
		{"--platform platform.json --cek cek.cert --trust-root short.pem" +
			" --out .", cli.ExitUsage, `short\.pem: certificate`},
		{"--platform platform.json --cek cek.cert --trust-root root.pem" +
			" --out file", cli.ExitUsage, `file: not a directory`},
		{
			"--platform platform.json --cek cek.cert --trust-root root.pem --out . --name ../x",
			cli.ExitUsage, `must be 1 to 63 letters`,
		},
		{
			"--policy no-debgu --platform platform.json --cek cek.cert --out .",
			cli.ExitUsage, `unknown word "no-debgu": did you mean "no-debug"\?`,
		},
		{
			"--policy xyz --platform platform.json --cek cek.cert --out .",
			cli.ExitUsage, `unknown word "xyz": must be no-debug, .* or a number`,
		},
		{"--policy 0xffc1 --platform platform.json --cek cek.cert --out .", cli.ExitUsage, `reserved bits`},
		{
			"--policy 0x2 --platform platform.json --cek cek.cert --out .",
			cli.ExitUsage, `lacks no-debug: the host can read and write.*\nhint: --allow-debug makes.*\nhint:` +
				` words are`,
		},
	} {
		d.refused("session "+c.args, c.code, c.want)
	}
	if entries, err := os.ReadDir("."); err != nil || strings.Contains(fmt.Sprint(entries), ".owner") {
		t.Errorf("refused sessions left %v, %v, want no owner file", entries, err)
	}
	d.run("session --policy 0xa --allow-debug --platform platform.json --cek cek.cert --trust-root root.pem --out .")
}

// TestOwnerFileIsGuarded: an owner file that is damaged or that others could have read
// is not used, and the error message reveals nothing about its keys.
func TestOwnerFileIsGuarded(t *testing.T) {
	d := newDesk(t)
	d.session("guest")
	d.launch("guest", sev.PolicyDefault, d.read("OVMF.fd"), nil)
	whole := string(d.read("guest.owner"))
	var o ownerFile
	if err := json.Unmarshal([]byte(whole), &o); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func()
		code   cli.ExitCode
		want   string
	}{
		"readable": {
			func() { must(t, os.Chmod("guest.owner", 0o640)) },
			cli.ExitRefused, `others can read it \(mode 0640\)\nhint: chmod 600`,
		},
		"linked": {
			func() { must(t, os.Link("guest.owner", "second")) },
			cli.ExitRefused, `second name.*\nhint: remove the other`,
		},
		"gone": {func() { must(t, os.Remove("guest.owner")) }, cli.ExitUsage, `no such file`},
		"a directory": {func() {
			must(t, os.Remove("guest.owner"))
			must(t, os.Mkdir("guest.owner", 0o700))
		}, cli.ExitUsage, `not a regular file`},
		"cut short": {
			func() { d.write("guest.owner", whole[:len(whole)/2]) },
			cli.ExitUsage, `damaged, or not an owner file`,
		},
		"too long": {
			func() { d.write("guest.owner", whole+strings.Repeat(" ", maxOwnerFile)) },
			cli.ExitUsage, `longer than`,
		},
		"other schema": {
			func() { d.write("guest.owner", strings.Replace(whole, "owner/1", "owner/9", 1)) },
			cli.ExitUsage, `its schema is not latchkey`,
		},
		"bad digest": {func() {
			bad := o
			bad.Verified = &verified{Hex: "abc"}
			d.writeOwner(&bad)
		}, cli.ExitFailure, `damaged`},
		"another file of the session": {func() {
			must(t, os.Rename("guest.session", "guest.owner"))
			must(t, os.Chmod("guest.owner", 0o644))
		}, cli.ExitUsage, `not an owner file`},
	} {
		t.Run(name, func(t *testing.T) {
			d := &desk{t: t, platform: d.platform}
			must(t, os.RemoveAll("guest.owner"))
			d.write("guest.owner", whole)
			c.change()
			d.refused("verify --owner guest.owner --measurement measurement.json --firmware OVMF.fd", c.code, c.want)
			_, _, errs := d.try("verify --owner guest.owner --measurement measurement.json --firmware OVMF.fd")
			if strings.Contains(errs, string(o.TEK)) {
				t.Errorf("a key is in the message %q", errs)
			}
			must(t, os.RemoveAll("second"))
		})
	}
}

func (d *desk) writeOwner(o *ownerFile) {
	d.t.Helper()
	b, err := json.Marshal(o)
	if err != nil {
		d.t.Fatal(err)
	}
	d.write("guest.owner", string(b))
}

func TestKeysHideThemselves(t *testing.T) {
	k := secretKey("0123456789abcdef")
	for _, got := range []string{fmt.Sprint(k), fmt.Sprintf("%v %s %#v", k, k, k), k.LogValue().String()} {
		if strings.Contains(got, "0123") || !strings.Contains(got, "redacted") {
			t.Errorf("a key shows itself: %q, want [redacted]", got)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
