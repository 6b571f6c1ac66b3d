// Command latchkey is the guest owner's side of a confidential launch: it makes
// sessions, verifies measurements and evidence, and packs secrets, also as a broker that
// guests ask. It runs on a machine that
// the owner trusts, and it alone sees the owner's keys.
package main

import (
	"errors"
	"os"
	"runtime/debug"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/cmd/latchkey/broker"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/sev/launch"
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
		Values: map[string][]string{
			"technology": technologies, "tdx-order": tdxOrders, "vmsa": launch.Profiles(), "vmm": launch.VMMs(),
			"bank":  {"sha1", "sha256", "sha384", "sha512"},
			"phase": {"none", "enter-initrd", "leave-initrd", "sysinit", "ready"},
			"curve": {"P-256", "P-384"},
		},
		Commands: []*urfave.Command{
			newPlatform(s), newSession(s), newMeasure(s), newVerify(s), newExplain(s), newIDBlock(s), newFirmware(s),
			newSecret(s), newReport(s), newQuote(s), newBundle(s), newPolicy(s), newBroker(s), newServe(s),
			newRequests(s), newDecision(s, broker.DoApprove, "approve a request that waits at a running broker",
				"The guest gets what it asked for when it asks again, within ten minutes."),
			newDecision(s, broker.DoDeny, "deny a request that waits at a running broker",
				"The guest is told, and powers off."),
			newAudit(s), newDisk(s), newPCRs(s), newTPM(s),
		},
	}
}
