// Command latchkey is the guest owner's side of a confidential launch: it makes
// sessions, verifies measurements and packs secrets. It runs on a machine that
// the owner trusts, and it alone sees the owner's keys.
package main

import (
	"errors"
	"os"
	"runtime/debug"

	urfave "github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
)

func main() {
	// Keys must not end in a core dump, nor in another process's hands.
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
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

      latchkey session --platform platform.json --policy no-debug,no-key-sharing --out .
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
			newSession(s), newMeasure(s), newVerify(s), newExplain(s), newIDBlock(s), newFirmware(s), newSecret(s),
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
latchkey says "emulated" wherever such a platform took part.`}}
