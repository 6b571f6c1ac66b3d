// Command latchkey is the guest owner's side of a confidential launch: it makes
// sessions, verifies measurements and packs secrets. It runs on a machine that
// the owner trusts, and it alone sees the owner's keys.
package main

import (
	"errors"
	"os"
	"runtime/debug"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
)

func main() {
	hideMemory()
	os.Exit(run())
}

func run() (code int) {
	debug.SetPanicOnFault(true) // images are mapped, not copied
	defer func() {
		if r := recover(); ovmf.IsShortened(r) {
			code = int(cli.System("latchkey").Fail(cli.WithHint(
				errors.New("a firmware file became shorter while it was read"), "run the command again")))
		} else if r != nil {
			panic(r)
		}
	}()
	return int(cli.Start("latchkey", newApp))
}

const long = `   Run it on a machine that you trust. Of its files the host needs only NAME.godh,
   NAME.session and the packet.

      latchkey session --platform platform.json --cek cek.cert --out .
      latchkey verify  --owner guest.owner --measurement measurement.json \
                       --firmware OVMF.amdsev.fd --kernel vmlinuz --initrd initrd.img \
                       --cmdline console=ttyS0
      latchkey secret  --owner guest.owner --measurement measurement.json \
                       --entry disk=passphrase.txt --out packet.json`

func newApp(s *cli.IO) *cli.App {
	return &cli.App{
		Name:  "latchkey",
		Usage: "the owner's side of a confidential launch",
		Long:  long, Version: cli.Version(), IO: s,
		Explain: advise, Topics: topics, Interruptible: true,
		Commands: []*urfave.Command{
			newPlatform(
				s,
			), newSession(s), newMeasure(s), newVerify(s), newExplain(s), newIDBlock(s), newFirmware(s), newSecret(s),
		},
	}
}

var topics = []cli.Topic{{Name: "trust", Title: "what a verified measurement proves, and what it does not", Text: `
A measurement that verifies proves that a secure processor, whose certificates
end in AMD's root, loaded exactly the firmware, kernel, initrd and command line
that you named into encrypted memory, under exactly your policy, and that the
guest has not run yet.

It does not prove what disks, network and other devices the host attached, how
much memory or how many CPUs the guest has, or that the platform's firmware has
no known bugs: ask for a firmware version with api=MAJOR.MINOR in the policy, next
to no-debug.

A platform whose root is a test root (swtee) proves nothing about protection.
latchkey says "emulated" wherever such a platform took part.`}, {
	Name: "policy", Title: "what a guest policy forbids the host", Text: `
The platform enforces the policy for as long as the guest runs. By default a
session forbids all three of these; each can be allowed by its own option:

no-debug         the host cannot read or write the guest's memory (--allow-debug)
no-key-sharing   no other guest gets this guest's key (--allow-key-sharing)
no-send          the guest is not sent to another platform (--allow-send)

Words for --policy, joined by commas, are added to the default:

es               SEV-ES is required: registers are protected too
domain, sev      with --allow-send: it is sent only within its owner's domain, only
                 to platforms whose certificates end in AMD's root
api=1.55         the platform's firmware has at least this API version

A number, such as 0xf, is all of a policy; what it lacks of the default must be
allowed. The host's spec must have the very same policy, which "latchkey session"
prints: with a different one the platform refuses the session. "latchkey verify" and
"latchkey secret" say what a policy leaves open.

The policies of SEV-SNP, for "latchkey idblock make", are smt, single-socket, migrate,
debug, cxl, aes-256-xts, no-rapl, ciphertext-hiding and abi=1.55.`,
}}
