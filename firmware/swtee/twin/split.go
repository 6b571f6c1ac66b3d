package twin

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/nearest"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/swtee/internal/cmdline"
	"github.com/vmlatch/vmlatch/firmware/swtee/internal/front"
)

// lines are a command line, split in two.
type lines struct {
	program string
	object  cmdline.Object // the confidential one
	oracle  []string
	twin    *front.Args
	paused  bool     // the caller gave -S
	notes   []string // what was changed, for the user
	machine string   // its type

	files    *files // what both are given
	firmware *file
	kernel   *file
	initrd   *file
	append   string
	measure  map[string]string // options of which the oracle gets another value
	flash    map[string]bool   // nodes of the first pflash
	bound    bool              // the firmware's log binds a kernel: TDX
}

func (l *lines) note(format string, a ...any) { l.notes = append(l.notes, fmt.Sprintf(format, a...)) }

// split takes a command line apart. measure has values of options that only the oracle gets: as on
// a host that lies.
func split(argv []string, measure map[string]string, fs *files) (*lines, error) {
	if len(argv) == 0 {
		return nil, errors.New("no QEMU command line given")
	}
	opts, err := cmdline.Parse(argv[1:])
	if err != nil {
		return nil, err
	}
	l := &lines{program: argv[0], files: fs, measure: maps.Clone(measure), twin: front.NewArgs(opts)}
	if err := l.look(opts); err != nil {
		return nil, err
	}
	l.oracle = append(l.oracle, "-nodefaults", "-no-user-config", "-display", "none", "-accel", kvmOptions(opts))
	l.twin.Add("-accel", "tcg")
	for _, o := range opts {
		if err := l.take(o); err != nil {
			return nil, err
		}
	}
	if err := l.lie(); err != nil {
		return nil, err
	}
	l.oracle = append(l.oracle, "-S")
	// What QEMU does to virtio devices of machines with confidential guest support
	// (hw/core/machine.c), also to those that -drive and -nic make, and that a guest's reset ends
	// its launch.
	l.twin.Add("-global", "virtio-device.iommu_platform=on", "-global", "virtio-blk-pci.disable-legacy=on",
		"-global", "virtio-net-pci.disable-legacy=on", "-action", "reboot=shutdown", "-S")
	return l, nil
}

// hidesRegisters reports whether the technology encrypts registers.
func (l *lines) hidesRegisters() bool {
	policy, err := strconv.ParseUint(l.object.Props["policy"], 0, 32)
	return l.object.Type != "sev-guest" || err == nil && sev.Policy(policy)&sev.PolicyES != 0
}

// kvmOptions are the accelerator's, if they are KVM's.
func kvmOptions(opts []cmdline.Option) string {
	for _, o := range opts {
		if o.Name == "accel" && (o.Value == "kvm" || strings.HasPrefix(o.Value, "kvm,")) {
			return o.Value
		}
	}
	return "kvm"
}

// look finds what the rest depends on: the confidential object, and the first pflash.
func (l *lines) look(opts []cmdline.Option) error {
	used, objects, nodes := "", map[string]cmdline.Object{}, map[string]string{}
	flash := ""
	for _, o := range opts {
		switch kvs := cmdline.Split(o.Value); o.Name {
		case "machine", "M":
			l.machine = cmp.Or(kvs.Type(), l.machine)
			used = cmp.Or(kvs.Get("confidential-guest-support"), kvs.Get("memory-encryption"), used)
			flash = cmp.Or(kvs.Get("pflash0"), flash)
			for _, key := range overriding {
				if kvs.Get(key) != "" {
					return fmt.Errorf("-machine %s=: write -%s, which swtee knows to be measured", key, key)
				}
			}
			if kvs.Get("igvm-cfg") != "" {
				return errIGVM
			}
		case "object":
			obj, err := cmdline.ParseObject(o.Value)
			if err != nil {
				return err
			}
			objects[obj.Props["id"]] = obj
		case "blockdev":
			n, err := cmdline.ParseNode(o.Value)
			if err != nil {
				return err
			}
			nodes[n.Name] = n.Child
		}
	}
	obj, ok := objects[used]
	if !ok || !slices.Contains(confidentialTypes, obj.Type) {
		return errors.New("no confidential guest: -machine confidential-guest-support= must name a sev-guest, " +
			"sev-snp-guest or tdx-guest object")
	}
	l.object, l.bound = obj, obj.Type == "tdx-guest"
	l.flash = map[string]bool{}
	for flash != "" && !l.flash[flash] {
		l.flash[flash] = true
		flash = nodes[flash]
	}
	return nil
}

// overriding are properties of the machine that stand for options.
var overriding = []string{"kernel", "initrd", "append", "shim", "firmware", "dtb"}

var errIGVM = errors.New("igvm-cfg: firmware in IGVM files runs only on the emulated platform itself: " +
	"use --accel under --fake-kvm")

var confidentialTypes = []string{"sev-guest", "sev-snp-guest", "tdx-guest"}

// give gives an option to both.
func (l *lines) give(o cmdline.Option) {
	l.measured(o)
	l.twin.Keep(o)
}

// measured gives an option to the oracle.
func (l *lines) measured(o cmdline.Option) { l.oracle = append(l.oracle, o.Args()...) }

// take handles one option.
func (l *lines) take(o cmdline.Option) error {
	switch sides[o.Name] {
	case unknown:
		return fmt.Errorf("-%s: swtee does not know whether this option is measured: %w", o.Name,
			nearest.Unknown("option", o.Name, slices.Sorted(maps.Keys(sides))))
	case refused:
		return fmt.Errorf(
			"-%s: %s",
			o.Name,
			cmp.Or(why[o.Name], "not for a confidential guest that really boots"),
		)
	case twinOnly:
		return l.takeTwins(o)
	}
	switch o.Name {
	case "S":
		l.paused = true
	case "nodefaults", "no-user-config", "nouserconfig":
		l.twin.Keep(o)
	case "enable-kvm", "accel":
		l.note("-%s %s left out: the guest runs under TCG", o.Name, o.Value)
	case "machine", "M":
		l.takeMachine(o)
	case "cpu":
		return l.takeCPU(o)
	case "object":
		return l.takeObject(o)
	case "bios", "kernel", "initrd":
		return l.takeFile(o)
	case "append":
		l.append = o.Value
		l.give(o)
	case "drive":
		return l.takeDrive(o)
	case "pflash":
		return l.takeDrive(cmdline.Option{Name: "drive", Value: "if=pflash,format=raw,file=" +
			strings.ReplaceAll(o.Value, ",", ",,")})
	case "blockdev":
		return l.takeBlockdev(o)
	default:
		l.give(o)
	}
	return nil
}

func (l *lines) takeMachine(o cmdline.Option) {
	kvs := cmdline.Split(o.Value)
	l.measured(cmdline.Option{Name: "machine", Value: kvs.Drop("accel", "pflash1", "audiodev").String()})
	kvs = kvs.Drop(
		"accel",
		"confidential-guest-support",
		"memory-encryption",
		"kernel_irqchip",
		"kernel-irqchip",
		"mem-merge",
	)
	l.twin.Add("-machine", append(kvs, cmdline.Element{Key: "mem-merge", Value: "off"}).String())
}

func (l *lines) takeCPU(o cmdline.Option) error {
	l.measured(o)
	model, rest, _ := strings.Cut(o.Value, ",")
	if model == "host" || slices.ContainsFunc(serverCPUs, func(p string) bool { return strings.HasPrefix(model, p) }) {
		l.note("-cpu %s became max: TCG has no such model", model)
		o.Value = strings.TrimSuffix("max,"+rest, ",")
	}
	l.twin.Keep(o)
	return nil
}

// serverCPUs are models of processors that have the technologies, and more than TCG can do.
var serverCPUs = []string{
	"EPYC",
	"SapphireRapids",
	"EmeraldRapids",
	"GraniteRapids",
	"SierraForest",
	"ClearwaterForest",
}

func (l *lines) takeObject(o cmdline.Option) error {
	obj, err := cmdline.ParseObject(o.Value)
	switch {
	case err != nil:
		return err
	case obj.Props["id"] == l.object.Props["id"]:
		l.measured(o)
	case strings.HasPrefix(obj.Type, "memory-backend-"):
		// Memory of its own, which no other process maps, and which takes no room before it is
		// used.
		l.oracle = append(l.oracle, "-object",
			cmdline.Elements{
				{Key: "memory-backend-ram", Bare: true},
				{Key: "id", Value: obj.Props["id"]},
				{Key: "size", Value: obj.Props["size"]},
			}.String())
		l.twin.Keep(o)
	case obj.Type == "igvm-cfg":
		return errIGVM
	default:
		l.twin.Keep(o)
	}
	return nil
}

// takeFile gives both the same bytes of a file that is measured.
func (l *lines) takeFile(o cmdline.Option) error {
	f, err := l.files.open(o.Value)
	if err != nil {
		return fmt.Errorf("-%s: %w", o.Name, err)
	}
	switch o.Name {
	case "bios":
		l.firmware = f
	case "kernel":
		l.kernel = f
	case "initrd":
		l.initrd = f
	}
	l.give(cmdline.Option{Name: o.Name, Value: f.name()})
	return nil
}

// lie gives the oracle other values of options.
func (l *lines) lie() error {
	for _, name := range slices.Sorted(maps.Keys(l.measure)) {
		value, last := l.measure[name], -1
		for i := 0; i+1 < len(l.oracle); i += 2 {
			if name == "object" && !strings.Contains(l.oracle[i+1], l.object.Type) {
				continue
			}
			if l.oracle[i] == "-"+name {
				last = i + 1 // of several QEMU takes the last
			}
			if flag := l.oracle[i]; flag == "-nodefaults" || flag == "-no-user-config" {
				i-- // these have no value
			}
		}
		if last < 0 || name == "accel" || name == "display" {
			return fmt.Errorf("measure %s: the command line has no option -%s that is measured", name, name)
		}
		if slices.Contains([]string{"bios", "kernel", "initrd"}, name) {
			f, err := l.files.open(value)
			if err != nil {
				return fmt.Errorf("measure %s: %w", name, err)
			}
			value = f.name()
		}
		l.oracle[last] = value
		l.note("a host that lies: the launch is measured with another -%s", name)
	}
	return nil
}
