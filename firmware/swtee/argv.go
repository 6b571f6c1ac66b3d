package swtee

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/sev"
)

// commandLine is a QEMU command line, split into what the TCG mode answers for
// and what QEMU gets.
type commandLine struct {
	program  string
	args     []string // for QEMU, without what was taken out
	guest    *sevObject
	monitors []monitorSpec
	firmware string
	kernel   string
	initrd   string
	cmdline  string
	paused   bool     // the caller gave -S
	notes    []string // what was changed, for people
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
	arg     int    // where in args the chardev's new address goes
	rest    string // its other options
}

// Options without a value, of all QEMU versions since 7.2 (QEMU, qemu-options.hx).
var flagOptions = map[string]bool{
	"S": true, "daemonize": true, "enable-kvm": true, "full-screen": true, "h": true, "help": true,
	"mem-prealloc": true, "no-acpi": true, "no-fd-bootchk": true, "no-hpet": true, "no-quit": true,
	"no-reboot": true, "no-shutdown": true, "no-user-config": true, "nodefaults": true, "nographic": true,
	"nouserconfig": true, "old-param": true, "only-migratable": true, "preconfig": true, "singlestep": true,
	"snapshot": true, "usb": true, "version": true, "win2k-hack": true, "xen-attach": true,
	"xen-domid-restrict": true, "alt-grab": true, "ctrl-grab": true, "sdl": true, "curses": true,
}

// keyValue is one element of an option's value.
type keyValue struct {
	key, value string
	bare       bool // without "="
}

// splitOptions splits "a=b,c=d,,e,f": a doubled comma stands for one, and an
// element without "=" is a bare word (QEMU, util/qemu-option.c).
func splitOptions(s string) []keyValue {
	var out []keyValue
	for len(s) > 0 {
		var b strings.Builder
		i := 0
		for i < len(s) {
			if s[i] == ',' {
				if i+1 < len(s) && s[i+1] == ',' {
					i++
				} else {
					break
				}
			}
			b.WriteByte(s[i])
			i++
		}
		s = s[min(i+1, len(s)):]
		if b.Len() == 0 {
			continue
		}
		k, v, found := strings.Cut(b.String(), "=")
		out = append(out, keyValue{k, v, !found})
	}
	return out
}

func joinOptions(kvs []keyValue) string {
	parts := make([]string, len(kvs))
	for i, kv := range kvs {
		parts[i] = strings.ReplaceAll(kv.key, ",", ",,")
		if !kv.bare {
			parts[i] += "=" + strings.ReplaceAll(kv.value, ",", ",,")
		}
	}
	return strings.Join(parts, ",")
}

func get(kvs []keyValue, key string) string {
	for _, kv := range kvs {
		if kv.key == key {
			return kv.value
		}
	}
	return ""
}

func drop(kvs []keyValue, keys ...string) []keyValue {
	return slices.DeleteFunc(kvs, func(kv keyValue) bool { return slices.Contains(keys, kv.key) })
}

// option is one option of the command line.
type option struct {
	name  string // without dashes
	value string
	flag  bool
}

func parseOptions(args []string) ([]option, error) {
	var opts []option
	for i := 0; i < len(args); i++ {
		name, dashed := strings.CutPrefix(args[i], "-")
		if !dashed || name == "" {
			return nil, fmt.Errorf("%q: swtee reads options only; give disk images with -drive", args[i])
		}
		name = strings.TrimPrefix(name, "-")
		if flagOptions[name] {
			opts = append(opts, option{name: name, flag: true})
			continue
		}
		if i++; i == len(args) {
			return nil, fmt.Errorf("-%s: its value is missing", name)
		}
		opts = append(opts, option{name: name, value: args[i]})
	}
	return opts, nil
}

// parseCommandLine takes a QEMU command line apart for the TCG mode.
func parseCommandLine(argv []string) (*commandLine, error) {
	if len(argv) == 0 {
		return nil, fmt.Errorf("no QEMU command line given")
	}
	opts, err := parseOptions(argv[1:])
	if err != nil {
		return nil, err
	}
	c := &commandLine{program: argv[0]}
	control := map[string]bool{} // chardevs of QMP monitors
	for _, o := range opts {
		if kvs := splitOptions(o.value); o.name == "mon" && get(kvs, "mode") == "control" {
			control[get(kvs, "chardev")] = true
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
func (c *commandLine) keep(o option) { c.add(append([]string{"-" + o.name}, o.values()...)...) }
func (o option) values() []string {
	if o.flag {
		return nil
	}
	return []string{o.value}
}

// take puts one option where it belongs.
func (c *commandLine) take(o option, control map[string]bool) error {
	switch o.name {
	case "S":
		c.paused = true
	case "daemonize":
		return fmt.Errorf("-daemonize: QEMU would outlive swtee, which answers for its platform; run swtee in the background instead")
	case "enable-kvm", "accel":
		c.note("-%s %s left out: runs under TCG", o.name, o.value)
	case "machine", "M":
		kvs := drop(splitOptions(o.value), "accel", "confidential-guest-support", "memory-encryption", "kernel_irqchip", "kernel-irqchip")
		c.add("-machine", joinOptions(kvs))
	case "cpu":
		if model, rest, _ := strings.Cut(o.value, ","); model == "host" || strings.HasPrefix(model, "EPYC") {
			c.note("-cpu %s became max: TCG has no such model", model)
			o.value = strings.TrimSuffix("max,"+rest, ",")
		}
		c.keep(o)
	case "object":
		return c.takeObject(o)
	case "chardev":
		return c.takeChardev(o, control)
	case "qmp":
		return c.takeQMP(o)
	case "bios":
		c.firmware = o.value
		c.keep(o)
	case "drive":
		kvs := splitOptions(o.value)
		if get(kvs, "if") == "pflash" && (get(kvs, "unit") == "0" || get(kvs, "unit") == "" && c.firmware == "") {
			c.firmware = get(kvs, "file")
		}
		c.keep(o)
	case "kernel":
		c.kernel = o.value
		c.keep(o)
	case "initrd":
		c.initrd = o.value
		c.keep(o)
	case "append":
		c.cmdline = o.value
		c.keep(o)
	default:
		c.keep(o)
	}
	return nil
}

func (c *commandLine) takeObject(o option) error {
	var kind string
	props := map[string]string{}
	if strings.HasPrefix(strings.TrimSpace(o.value), "{") {
		var raw map[string]any
		if err := json.Unmarshal([]byte(o.value), &raw); err != nil {
			return fmt.Errorf("-object: %w", err)
		}
		for k, v := range raw {
			if n, ok := v.(float64); ok {
				v = strconv.FormatFloat(n, 'f', -1, 64)
			}
			props[k] = fmt.Sprint(v)
		}
		kind = props["qom-type"]
	} else {
		for i, kv := range splitOptions(o.value) {
			if i == 0 {
				kind = kv.key
			}
			props[kv.key] = kv.value
		}
	}
	switch kind {
	case "sev-guest":
	case "sev-snp-guest", "tdx-guest":
		return fmt.Errorf("-object %s: under TCG only sev-guest is emulated; its measurement has no QMP side to stand in for", kind)
	default:
		c.keep(o)
		return nil
	}
	policy := uint64(sev.PolicyNoDebug) // QEMU's default
	if p := props["policy"]; p != "" {
		var err error
		if policy, err = strconv.ParseUint(p, 0, 32); err != nil {
			return fmt.Errorf("-object sev-guest: policy=%s is no 32-bit number", p)
		}
	}
	if sev.Policy(policy)&sev.PolicyES != 0 {
		return fmt.Errorf("-object sev-guest: policy %#x asks for SEV-ES, whose register state does not exist under TCG", policy)
	}
	if (props["dh-cert-file"] == "") != (props["session-file"] == "") {
		return fmt.Errorf("-object sev-guest: dh-cert-file and session-file go together")
	}
	hashes := props["kernel-hashes"]
	c.guest = &sevObject{
		policy:       sev.Policy(policy),
		ownerFile:    props["dh-cert-file"],
		sessionFile:  props["session-file"],
		kernelHashes: hashes == "on" || hashes == "true" || hashes == "yes" || hashes == "y",
	}
	return nil
}

// takeChardev gives a monitor's socket to swtee and leaves QEMU a new address
// in its place; other options of the chardev, such as logfile, stay.
func (c *commandLine) takeChardev(o option, control map[string]bool) error {
	kvs := splitOptions(o.value)
	id := get(kvs, "id")
	if !control[id] {
		c.keep(o)
		return nil
	}
	if len(kvs) == 0 || kvs[0].key != "socket" {
		return fmt.Errorf("-chardev %s: swtee can stand before QMP monitors on unix sockets only", o.value)
	}
	m := monitorSpec{chardev: id, fd: -1, path: get(kvs, "path"), arg: len(c.args) + 1}
	if server := get(kvs, "server"); server == "on" || slices.Contains(kvs, keyValue{key: "server", bare: true}) {
		m.listen = true
	}
	if fd := get(kvs, "fd"); fd != "" {
		n, err := strconv.Atoi(fd)
		if err != nil || n < 3 {
			return fmt.Errorf("-chardev %s: fd must be the number of an inherited socket", o.value)
		}
		m.fd = n
	} else if m.path == "" || !m.listen {
		return fmt.Errorf("-chardev %s: needs fd=, or path= with server=on", o.value)
	}
	m.rest = joinOptions(drop(kvs, "path", "fd", "server", "wait", "nowait", "reconnect"))
	c.monitors = append(c.monitors, m)
	c.add("-chardev", "") // filled in by withMonitor
	return nil
}

// takeQMP expands the short form for a listening unix socket.
func (c *commandLine) takeQMP(o option) error {
	kvs := splitOptions(o.value)
	path, ok := "", false
	if len(kvs) > 0 {
		path, ok = strings.CutPrefix(kvs[0].key, "unix:")
	}
	if !ok {
		return fmt.Errorf("-qmp %s: swtee can stand before unix:PATH,server=on,wait=off only", o.value)
	}
	id := fmt.Sprintf("swtee-qmp%d", len(c.monitors))
	long := append([]keyValue{{key: "socket", bare: true}, {key: "id", value: id}, {key: "path", value: path}}, kvs[1:]...)
	if err := c.takeChardev(option{name: "chardev", value: joinOptions(long)}, map[string]bool{id: true}); err != nil {
		return err
	}
	c.add("-mon", "chardev="+id+",mode=control")
	return nil
}

// withMonitor puts the inherited socket fd into a monitor's chardev.
func (c *commandLine) withMonitor(m monitorSpec, fd int) {
	c.args[m.arg] = fmt.Sprintf("%s,fd=%d", m.rest, fd)
}
