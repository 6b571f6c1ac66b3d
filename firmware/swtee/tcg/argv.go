package tcg

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/swtee/internal/cmdline"
)

// commandLine is a QEMU command line, split into what the TCG mode handles itself and
// what it passes to QEMU.
type commandLine struct {
	program  string
	args     []string // for QEMU, without the options that were taken out
	guest    *sevObject
	monitors []monitorSpec
	firmware string
	kernel   string
	initrd   string
	cmdline  string
	paused   bool     // the caller gave -S
	key      string   // handle of an mktme-guest's key; "" without one
	notes    []string // what was changed, for the user
}

// sevObject is a sev-guest object (QEMU, qapi/qom.json, SevGuestProperties).
type sevObject struct {
	policy       sev.Policy
	ownerFile    string
	sessionFile  string
	kernelHashes bool
}

// monitorSpec is a QMP monitor that clients reach through swtee.
type monitorSpec struct {
	chardev string // its id
	fd      int    // inherited socket; -1 if path is set
	path    string // unix socket to listen on
	listen  bool   // server=on: fd or path is listened on
	arg     int    // index in args of the chardev's new address
	rest    string // its other options
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
	c := &commandLine{program: argv[0]}
	control := map[string]bool{} // chardevs of QMP monitors
	for _, o := range opts {
		if kvs := cmdline.Split(o.Value); o.Name == "mon" && kvs.Get("mode") == "control" {
			control[kvs.Get("chardev")] = true
		}
	}
	c.add("-accel", "tcg")
	for _, o := range opts {
		if err := c.take(o, control); err != nil {
			return nil, err
		}
	}
	c.add("-S")
	return c, nil
}

func (c *commandLine) add(args ...string) { c.args = append(c.args, args...) }
func (c *commandLine) note(format string, a ...any) {
	c.notes = append(c.notes, fmt.Sprintf(format, a...))
}
func (c *commandLine) keep(o cmdline.Option) { c.add(o.Args()...) }

// take handles one option.
func (c *commandLine) take(o cmdline.Option, control map[string]bool) error {
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
		c.add("-machine", kvs.String())
	case "cpu":
		if model, rest, _ := strings.Cut(o.Value, ","); model == "host" || strings.HasPrefix(model, "EPYC") {
			c.note("-cpu %s became max: TCG has no such model", model)
			o.Value = strings.TrimSuffix("max,"+rest, ",")
		}
		c.keep(o)
	case "object":
		return c.takeObject(o)
	case "chardev":
		return c.takeChardev(o, control)
	case "qmp":
		return c.takeQMP(o)
	case "bios":
		c.firmware = o.Value
		c.keep(o)
	case "drive":
		kvs := cmdline.Split(o.Value)
		if kvs.Get("if") == "pflash" && (kvs.Get("unit") == "0" || kvs.Get("unit") == "" && c.firmware == "") {
			c.firmware = kvs.Get("file")
		}
		c.keep(o)
	case "kernel":
		c.kernel = o.Value
		c.keep(o)
	case "initrd":
		c.initrd = o.Value
		c.keep(o)
	case "append":
		c.cmdline = o.Value
		c.keep(o)
	default:
		c.keep(o)
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
		c.keep(o)
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

// takeChardev gives a monitor's socket to swtee and leaves QEMU a new address
// in its place; other options of the chardev, such as logfile, stay.
func (c *commandLine) takeChardev(o cmdline.Option, control map[string]bool) error {
	kvs := cmdline.Split(o.Value)
	id := kvs.Get("id")
	if !control[id] {
		c.keep(o)
		return nil
	}
	if len(kvs) == 0 || kvs[0].Key != "socket" {
		return fmt.Errorf("-chardev %s: swtee can take over QMP monitors on unix sockets only", o.Value)
	}
	m := monitorSpec{chardev: id, fd: -1, path: kvs.Get("path"), arg: len(c.args) + 1}
	if server := kvs.Get("server"); server == "on" || slices.Contains(kvs, cmdline.Element{Key: "server", Bare: true}) {
		m.listen = true
	}
	if fd := kvs.Get("fd"); fd != "" {
		n, err := strconv.Atoi(fd)
		if err != nil || n < 3 {
			return fmt.Errorf("-chardev %s: fd must be the number of an inherited socket", o.Value)
		}
		m.fd = n
	} else if m.path == "" || !m.listen {
		return fmt.Errorf("-chardev %s: needs fd=, or path= with server=on", o.Value)
	}
	m.rest = kvs.Drop("path", "fd", "server", "wait", "nowait", "reconnect").String()
	c.monitors = append(c.monitors, m)
	c.add("-chardev", "") // filled in by withMonitor
	return nil
}

// takeQMP expands the short form for a listening unix socket.
func (c *commandLine) takeQMP(o cmdline.Option) error {
	kvs := cmdline.Split(o.Value)
	path, ok := "", false
	if len(kvs) > 0 {
		path, ok = strings.CutPrefix(kvs[0].Key, "unix:")
	}
	if !ok {
		return fmt.Errorf("-qmp %s: swtee can take over unix:PATH,server=on,wait=off only", o.Value)
	}
	id := fmt.Sprintf("swtee-qmp%d", len(c.monitors))
	long := cmdline.Elements{{Key: "socket", Bare: true}, {Key: "id", Value: id}, {Key: "path", Value: path}}
	long = append(long, kvs[1:]...)
	chardev := cmdline.Option{Name: "chardev", Value: long.String()}
	if err := c.takeChardev(chardev, map[string]bool{id: true}); err != nil {
		return err
	}
	c.add("-mon", "chardev="+id+",mode=control")
	return nil
}

// withMonitor puts the inherited socket fd into a monitor's chardev.
func (c *commandLine) withMonitor(m monitorSpec, fd int) {
	c.args[m.arg] = fmt.Sprintf("%s,fd=%d", m.rest, fd)
}
