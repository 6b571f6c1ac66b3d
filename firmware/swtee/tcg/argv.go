package tcg

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/swtee/internal/cmdline"
	"github.com/vmlatch/vmlatch/firmware/swtee/internal/front"
)

// commandLine is a QEMU command line, split into what the TCG mode handles itself and
// what it passes to QEMU.
type commandLine struct {
	program     string
	*front.Args // for QEMU, without the options that were taken out
	guest       *sevObject
	firmware    string
	kernel      string
	initrd      string
	cmdline     string
	paused      bool     // the caller gave -S
	key         string   // handle of an mktme-guest's key; "" without one
	notes       []string // what was changed, for the user
}

// sevObject is a sev-guest object (QEMU, qapi/qom.json, SevGuestProperties).
type sevObject struct {
	policy       sev.Policy
	ownerFile    string
	sessionFile  string
	kernelHashes bool
}

// parseCommandLine takes a QEMU command line apart for the TCG mode.
func parseCommandLine(argv []string) (*commandLine, error) {
	if len(argv) == 0 {
		return nil, fmt.Errorf("no QEMU command line given")
	}
	opts, err := cmdline.Parse(argv[1:])
	if err != nil {
		return nil, err
	}
	c := &commandLine{program: argv[0], Args: front.NewArgs(opts)}
	c.Add("-accel", "tcg")
	for _, o := range opts {
		if err := c.take(o); err != nil {
			return nil, err
		}
	}
	c.Add("-S")
	return c, nil
}

func (c *commandLine) note(format string, a ...any) {
	c.notes = append(c.notes, fmt.Sprintf(format, a...))
}

// take handles one option.
func (c *commandLine) take(o cmdline.Option) error {
	switch o.Name {
	case "S":
		c.paused = true
	case "daemonize":
		return errors.New("-daemonize: QEMU would outlive swtee, which answers for its platform; " +
			"run swtee in the background instead")
	case "enable-kvm", "accel":
		c.note("-%s %s left out: runs under TCG", o.Name, o.Value)
	case "machine", "M":
		kvs := cmdline.Split(o.Value).Drop("accel", "confidential-guest-support", "memory-encryption",
			"kernel_irqchip", "kernel-irqchip")
		c.Add("-machine", kvs.String())
	case "cpu":
		if model, rest, _ := strings.Cut(o.Value, ","); model == "host" || strings.HasPrefix(model, "EPYC") {
			c.note("-cpu %s became max: TCG has no such model", model)
			o.Value = strings.TrimSuffix("max,"+rest, ",")
		}
		c.Keep(o)
	case "object":
		return c.takeObject(o)
	case "chardev":
		return c.TakeChardev(o)
	case "qmp":
		return c.TakeQMP(o)
	case "bios":
		c.firmware = o.Value
		c.Keep(o)
	case "drive":
		kvs := cmdline.Split(o.Value)
		if kvs.Get("if") == "pflash" && (kvs.Get("unit") == "0" || kvs.Get("unit") == "" && c.firmware == "") {
			c.firmware = kvs.Get("file")
		}
		c.Keep(o)
	case "kernel":
		c.kernel = o.Value
		c.Keep(o)
	case "initrd":
		c.initrd = o.Value
		c.Keep(o)
	case "append":
		c.cmdline = o.Value
		c.Keep(o)
	default:
		c.Keep(o)
	}
	return nil
}

func (c *commandLine) takeObject(o cmdline.Option) error {
	obj, err := cmdline.ParseObject(o.Value)
	if err != nil {
		return err
	}
	props := obj.Props
	switch obj.Type {
	case MKTMEObject:
		if c.key = props[MKTMEProperty]; c.key == "" {
			return fmt.Errorf("-object %s: %s is missing", MKTMEObject, MKTMEProperty)
		}
		c.note("-object %s left out: TCG has no MKTME", MKTMEObject)
		return nil
	case "sev-guest":
	case "sev-snp-guest", "tdx-guest":
		return fmt.Errorf("-object %s: under TCG only sev-guest is emulated; "+
			"its measurement has no QMP side to stand in for", obj.Type)
	default:
		c.Keep(o)
		return nil
	}
	policy := uint64(sev.PolicyNoDebug) // QEMU's default
	if p := props["policy"]; p != "" {
		if policy, err = strconv.ParseUint(p, 0, 32); err != nil {
			return fmt.Errorf("-object sev-guest: policy=%s: must be a 32-bit number", p)
		}
	}
	if sev.Policy(policy)&sev.PolicyES != 0 {
		return fmt.Errorf("-object sev-guest: policy %#x asks for SEV-ES, "+
			"whose register state does not exist under TCG", policy)
	}
	if (props["dh-cert-file"] == "") != (props["session-file"] == "") {
		return fmt.Errorf("-object sev-guest: dh-cert-file and session-file go together")
	}
	c.guest = &sevObject{
		policy:       sev.Policy(policy),
		ownerFile:    props["dh-cert-file"],
		sessionFile:  props["session-file"],
		kernelHashes: obj.On("kernel-hashes"),
	}
	return nil
}
