// Command latchguest is the guest's side of latch/1: it proves the guest to its owner's broker,
// and opens the disk, or writes the secrets, that the broker gives. It runs in the initrd, before
// anything that the host could have changed, and reads from the measured command line who the
// broker is:
//
//	latch.key=ed25519:…          the broker's key (latchkey broker)
//	latch.name=NAME              the owner's policy
//	latch.broker=WAY             port, vsock:CID:PORT or tcp:ADDRESS:PORT
//	latch.source=injected        SEV and SEV-ES: the secrets were injected before the guest ran
//	latch.close=no               TDX: the kernel cannot extend RTMR3 (before Linux 6.16)
//	latch.trust=host             the guest trusts its host, and proves itself by the TPM
//
// A guest whose host is trusted may open its disk by its TPM instead (latchguest unseal):
//
//	latch.tpm=PIN                names the disk's secret (latchkey tpm pin); or unpinned
//
// On such a command line there is no way in besides the exchange: every failure powers the guest
// off, and so does a command line that lets a person at the console in.
package main

import (
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/smallfmt"
)

// errHelp means that help was asked for.
var errHelp = errors.New("help")

// version is set when a release is built.
var version = "devel"

const usage = `latchguest - prove this guest to its owner's broker and get its secrets

usage: latchguest --secret NAME[=FILE] [--secret …] [--device DEVICE --open VOLUME]
       latchguest unseal --device DEVICE --open VOLUME
       latchguest config
       latchguest unseal | quote | identity | activate | revoke   (latchguest-tpm --help)

It reads latch.key, latch.name and latch.broker from the kernel's command line, which the
guest's measurement covers. With latch.trust=host it proves itself by the TPM, which is its
host's; unseal reads latch.tpm, and needs no broker. If anything fails, the guest powers off.

config hands on what configures the first boot and is measured with the initrd: to cloud-init in
/run/vmlatch/seed, to systemd as credentials.

  --secret NAME=FILE   write the secret to FILE, which must be in memory (tmpfs)
  --secret NAME        open the encrypted disk with it
  --device DEVICE      the disk; its header must be the one that the owner bound
  --open VOLUME        the disk becomes /dev/mapper/VOLUME
  --timeout DURATION   give up after this time (default 5m)
  --check[=FILE]       only say what the command line, or that in FILE, lacks, and which doors
                       it leaves open
  --version

examples:

  latchguest --secret disk --device /dev/vda2 --open root
  latchguest --secret token=/run/latchguest/token
  latchguest unseal --device /dev/vda2 --open root

exit codes: 0 done; 2 wrong use; 4 (--check) it is not safe
`

func main() {
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // keys stay out of core dumps
	g := &guest{
		paths: linux(),
		out:   file(2),
		reply: 15 * time.Second,
		judge: 30 * time.Second,
		now:   time.Now,
		sleep: time.Sleep,
	}
	os.Exit(run(g, os.Args[1:], file(1)))
}

// run does what the arguments say. It returns only if there is nothing to protect, or all went
// well.
func run(g *guest, args []string, stdout io.Writer) int {
	// What else the TPM is asked for is for people, who see the answer.
	all := strings.Join(args, " ")
	unseals := ofTPM(args) && (strings.Contains(all, " --open") || strings.Contains(all, " --device"))
	switch {
	case unseals:
		args = args[1:]
	case ofTPM(args):
		return g.runHelper(args)
	case len(args) == 1 && args[0] == "config":
		if err := g.configure(); err != nil { // it would boot as something else
			g.fail(err)
			return 4 // the power is off by now
		}
		return 0
	}
	o, err := parse(args, unseals)
	switch {
	case errors.Is(err, errHelp):
		_, _ = io.WriteString(stdout, usage)
		return 0
	case err != nil:
		g.say("%v (latchguest --help)", err)
		return 2
	case o.version:
		_, _ = io.WriteString(stdout, "latchguest "+version+"\n")
		return 0
	}
	if o.cmdline != "" {
		g.cmdline = o.cmdline
	}
	line, err := readFile(g.cmdline)
	if err != nil {
		g.say("%v", err)
		return 2
	}
	if o.check {
		return g.check(string(line), o.volume)
	}
	if unseals {
		if err := g.unsealed(o, string(line)); err != nil {
			g.fail(err)
			return 4 // the power is off by now
		}
		return 0
	}
	if !exchange.HasWords(string(line)) {
		g.say("the command line names no broker (latch.key): nothing to do")
		return 2
	}
	if err := g.get(o, string(line)); err != nil {
		g.fail(err)
		return 4 // the power is off by now
	}
	return 0
}

// options are what the arguments say.
type options struct {
	files          map[string]string // secrets by name, and where they go; "" for the disk
	disk           string            // the secret that opens it; "" for none
	device, volume string
	cmdline        string // a file to check; "" for that of the kernel
	timeout        time.Duration
	check, version bool
}

// parse reads the arguments. Package flag would be a twentieth of the program.
func parse(args []string, unseals bool) (*options, error) {
	o := &options{files: map[string]string{}, timeout: 5 * time.Minute}
	for len(args) > 0 {
		name, value, given := strings.Cut(args[0], "=")
		args = args[1:]
		switch name {
		case "-h", "--help":
			return nil, errHelp
		case "--check":
			o.check, o.cmdline = true, value
			continue
		case "--version":
			o.version = true
			continue
		case "--secret", "--device", "--open", "--timeout":
		default:
			return nil, smallfmt.Errorf("unknown argument %q", name)
		}
		if !given {
			if len(args) == 0 {
				return nil, smallfmt.Errorf("%s needs a value", name)
			}
			value, args = args[0], args[1:]
		}
		if err := o.set(name, value); err != nil {
			return nil, smallfmt.Errorf("%s: %w", name, err)
		}
	}
	switch {
	case o.check || o.version:
	case unseals:
		if len(o.files) > 0 || o.device == "" || o.volume == "" {
			return nil, errors.New("unseal needs --device and --open, and no --secret")
		}
	case len(o.files) == 0:
		return nil, errors.New("--secret is missing")
	case (o.disk != "") != (o.device != "") || (o.device != "") != (o.volume != ""):
		return nil, errors.New("--secret NAME, --device and --open go together")
	}
	return o, nil
}

func (o *options) set(name, value string) (err error) {
	switch name {
	case "--secret":
		return o.addSecret(value)
	case "--device":
		if o.device = value; !strings.HasPrefix(value, "/") {
			err = errors.New("must be an absolute path")
		}
	case "--open":
		if o.volume = value; !exchange.IsName(value) {
			err = errors.New("must be a volume's name")
		}
	case "--timeout":
		o.timeout, err = parseDuration(value)
	}
	return err
}

func (o *options) addSecret(text string) error {
	name, file, written := strings.Cut(text, "=")
	switch {
	case !exchange.IsName(name):
		return errors.New("must be NAME or NAME=FILE")
	case written && !strings.HasPrefix(file, "/"):
		return errors.New("FILE must be an absolute path")
	case !written && o.disk != "":
		return errors.New("only one secret opens the disk; others need a FILE")
	}
	if _, twice := o.files[name]; twice {
		return errors.New("a secret is named twice")
	}
	if !written {
		o.disk = name
	}
	o.files[name] = file
	return nil
}

// parseDuration reads a number of seconds, minutes or hours, such as 90s, 5m or 1h.
func parseDuration(text string) (time.Duration, error) {
	unit := time.Second
	switch {
	case strings.HasSuffix(text, "m"):
		unit = time.Minute
	case strings.HasSuffix(text, "h"):
		unit = time.Hour
	}
	n, err := strconv.ParseUint(strings.TrimRight(text, "smh"), 10, 16)
	if err != nil || n == 0 || len(text)-len(strings.TrimRight(text, "smh")) > 1 {
		return 0, errors.New("must be a time such as 90s, 5m or 1h")
	}
	return time.Duration(n) * unit, nil
}
