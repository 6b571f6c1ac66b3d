//go:build linux && !quick

// These take long, and need no more than the others.

package main

import (
	"bytes"
	"os"
	"testing"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/sev"
)

// TestSealedOwner: an owner file with a passphrase goes the whole way, and gives nothing
// away without it.
func TestSealedOwner(t *testing.T) {
	if workFactor < 18 {
		t.Errorf("a guess of a passphrase is work of 2^%d", workFactor)
	}
	workFactor = 12 // with the race detector the whole of it takes a minute
	t.Cleanup(func() { workFactor = 18 })
	d := newDesk(t)
	d.write("words", "open sesame\nsecond line\n")
	d.write("wrong", "open barley\n")
	d.session("guest", "--passphrase-file words")
	sealed := d.read("guest.owner")
	if !bytes.HasPrefix(sealed, []byte("-----BEGIN AGE ENCRYPTED FILE-----\n")) ||
		bytes.Contains(sealed, []byte(`"tek"`)) {
		t.Fatalf("owner file %.60q, want one in age's format", sealed)
	}
	d.launch("guest", sev.PolicyDefault, d.read("OVMF.fd"), nil)
	d.refused(verifyLine+"--firmware OVMF.fd --passphrase-file wrong", cli.ExitRefused, `the passphrase is wrong`)
	d.refused(verifyLine+"--firmware OVMF.fd --passphrase-file missing", cli.ExitUsage, `no such file`)
	must(t, os.Chmod("guest.owner", 0o644))
	d.refused(verifyLine+"--firmware OVMF.fd --passphrase-file words", cli.ExitRefused, `others can read it`)
	must(t, os.Chmod("guest.owner", 0o600))
	d.run(verifyLine + "--firmware OVMF.fd --passphrase-file words")
	if again := d.read("guest.owner"); bytes.Equal(again, sealed) || !isSealed(again) {
		t.Error("what was verified is not kept, or kept in clear")
	}
	d.run("explain --owner guest.owner --measurement measurement.json --firmware OVMF.fd --passphrase-file words")
	d.run(secretLine + "--entry disk=passphrase --passphrase-file words")
	d.refused(
		secretLine+"--entry disk=passphrase --passphrase-file words",
		cli.ExitRefused,
		`given out its secret already`,
	)
	b := d.read("guest.owner")
	for name, bad := range map[string][]byte{
		"cut off": b[:len(b)/2], "flipped": bytes.Replace(b, b[100:101], []byte{b[100] ^ 1}, 1), "header only": b[:36],
	} {
		d.write("guest.owner", string(bad))
		if code, _, errs := d.try(verifyLine + "--firmware OVMF.fd --passphrase-file words"); code == cli.ExitOK {
			t.Errorf("%s: %s, want it refused", name, errs)
		}
	}
}
