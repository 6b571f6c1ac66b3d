// Command latchguest-tpm is the part of latchguest that talks to the guest's TPM, which takes more
// room than an initrd without a TPM should give. latchguest starts it.
//
// A guest's TPM is its host's: what it keeps and what it says is in the hands of whoever controls
// the host.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/tpm"
)

// version is set when a release is built.
var version = "devel"

// Exit codes, as those of the other programs.
const (
	exitFailure = 1
	exitUsage   = 2
	exitRefused = 4
)

const usage = `latchguest-tpm - unseal secrets and make quotes by the guest's TPM, which is its host's

usage: latchguest unseal SEALED [APPROVAL…]       print what is sealed in a file
       latchguest unseal --header HEADER           print what is sealed in a disk's header
       latchguest identity                         print the TPM's keys, for its owner (JSON)
       latchguest activate CREDENTIAL              print the answer to its owner's challenge
       latchguest quote --nonce HEX [--pcrs LIST]  print registers that the TPM signs (JSON)
       latchguest revoke VERSION                   end approvals of versions below VERSION
       latchguest-tpm attest HEX | close           what latchguest itself asks for (latch.trust=host)

  --tpm FILE     the TPM (default /dev/tpmrm0)
  --pin HEX      unseal: refuse another secret (latchkey tpm pin)
  --close        unseal: nothing unseals again until the next boot (extends PCR 15)
  --rewrite      unseal: HEADER is a copy; make it say only what was read, without tokens
  --pcrs LIST    quote: registers (default 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15)
  --bank NAME    quote: sha256 (default), sha384, sha1, sha512
  --log FILE     quote: the event log ("" for none)

examples:

  latchguest unseal root.tpm web-2.approval
  latchguest quote --nonce 00112233445566778899aabbccddeeff > quote.json
  latchguest revoke 2

exit codes: 0 done; 1 failed; 2 wrong use; 4 refused: the boot is not the one that the owner wants
`

func main() {
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // secrets stay out of core dumps
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, func() { os.Exit(130) }) // a TPM does not stop in the middle of a command
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// allPCRs are those that a machine boots with; the others are of programs.
const allPCRs = "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"

// errUse is wrapped by errors of the command line.
var errUse = errors.New("wrong use")

// options are what the arguments say.
type options struct {
	tpm, header, pin, pcrs, bank, nonce, log string
	close, rewrite                           bool
	args                                     []string
	in                                       io.Reader
	out, err                                 io.Writer
}

func run(args []string, in io.Reader, out, errOut io.Writer) int {
	if len(args) == 0 || args[0] == "--help" || args[0] == "-h" {
		_, _ = io.WriteString(out, usage)
		return 0
	}
	if args[0] == "--version" {
		fmt.Fprintln(out, "latchguest-tpm "+version)
		return 0
	}
	o := &options{in: in, out: out, err: errOut}
	commands := map[string]func(*options) error{
		"unseal": unseal, "quote": makeQuote, "identity": identity, "activate": activate, "revoke": revoke,
		"attest": attest, "close": closeBoot,
	}
	do, ok := commands[args[0]]
	err := fmt.Errorf("%w: there is no command %q", errUse, args[0])
	if ok {
		if err = o.parse(args[0], args[1:]); errors.Is(err, flag.ErrHelp) {
			_, _ = io.WriteString(out, usage)
			return 0
		}
	}
	if err == nil {
		err = do(o)
	}
	return o.report(err)
}

// parse reads options, which may stand between arguments.
func (o *options) parse(command string, args []string) error {
	f := flag.NewFlagSet(command, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&o.tpm, "tpm", tpm.Device, "")
	switch command {
	case "unseal":
		f.StringVar(&o.header, "header", "", "")
		f.StringVar(&o.pin, "pin", "", "")
		f.BoolVar(&o.close, "close", false, "")
		f.BoolVar(&o.rewrite, "rewrite", false, "")
	case "quote":
		f.StringVar(&o.nonce, "nonce", "", "")
		f.StringVar(&o.pcrs, "pcrs", allPCRs, "")
		f.StringVar(&o.bank, "bank", "sha256", "")
		f.StringVar(&o.log, "log", eventLog, "")
	}
	for {
		if err := f.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return err
			}
			return fmt.Errorf("%w: %w", errUse, err)
		}
		if f.NArg() == 0 {
			return nil
		}
		o.args = append(o.args, f.Arg(0))
		args = f.Args()[1:]
	}
}

// report says what failed, and returns the exit code.
func (o *options) report(err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintf(o.err, "latchguest-tpm: %v\n", err)
	var e *tpm.Error
	if errors.As(err, &e) && e.Fix != "" {
		fmt.Fprintf(o.err, "latchguest-tpm: hint: %s\n", e.Fix)
	}
	switch {
	case errors.Is(err, errUse):
		fmt.Fprintln(o.err, "latchguest-tpm: hint: latchguest-tpm --help")
		return exitUsage
	case isRefusal(err):
		return exitRefused
	}
	return exitFailure
}
