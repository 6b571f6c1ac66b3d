package twin

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/swtee/internal/cmdline"
)

// takeTwins handles an option that nothing measures.
func (l *lines) takeTwins(o cmdline.Option) error {
	switch kvs := cmdline.Split(o.Value); o.Name {
	case "chardev":
		return l.twin.TakeChardev(o)
	case "qmp":
		return l.twin.TakeQMP(o)
	case "mon":
		if !controls(kvs) {
			return errHMP
		}
	case "d":
		if !harmlessLog(o.Value) {
			return errors.New("-d: it would log what the guest executes, which silicon hides; " +
				"guest_errors, unimp and trace: are taken")
		}
	case "fw_cfg":
		if strings.Contains(o.Value, "name=etc/boot/") || strings.HasPrefix(o.Value, "etc/boot/") {
			return errors.New("-fw_cfg etc/boot/…: the firmware would start it in the place of the kernel, " +
				"and no measurement covers it")
		}
	case "monitor":
		if o.Value != "none" {
			return errHMP
		}
	case "serial", "parallel", "debugcon":
		if strings.HasPrefix(o.Value, "mon:") {
			return errHMP
		}
	case "action":
		if kvs.Get("reboot") != "" && kvs.Get("reboot") != "shutdown" {
			return errors.New("-action reboot=: a guest's reset ends its launch; leave it out")
		}
	case "run-with":
		if kvs.Get("user") != "" || kvs.Get("chroot") != "" {
			return errors.New("-run-with user=, chroot=: the kernel would let QEMU live on without swtee")
		}
	case "device":
		return l.takeDevice(o)
	case "boot":
		if l.bound && o.Value != "strict=on" && o.Value != "strict=off" {
			return errors.New("-boot: with TDX the twin boots the kernel that RTMR1 names, and nothing else")
		}
	}
	l.twin.Keep(o)
	return nil
}

var errHMP = errors.New("a monitor for people (HMP) would go around the launch: use QMP, " +
	"and a serial console without the prefix \"mon:\"")

// controls reports whether a monitor is a plain QMP monitor: each property once, as QEMU takes the
// last of several.
func controls(kvs cmdline.Elements) bool {
	seen := map[string]bool{}
	for i, e := range kvs {
		if e.Bare && i > 0 || seen[e.Key] {
			return false
		}
		seen[e.Key] = true
	}
	return kvs.Get("mode") == "control"
}

// harmlessLog reports whether the items of -d are about QEMU, and not about the guest's state.
func harmlessLog(items string) bool {
	for item := range strings.SplitSeq(items, ",") {
		if item != "guest_errors" && item != "unimp" && !strings.HasPrefix(item, "trace:") {
			return false
		}
	}
	return true
}

// unmeasured are devices that put something into a guest which its measurement should have.
func unmeasured(driver string) bool {
	return driver == "loader" || driver == "guest-loader" || hotplugged(driver)
}

// takeDevice keeps a device. With TDX it takes out the order of booting: firmware that falls
// through to a disk would run what RTMR1 does not name.
func (l *lines) takeDevice(o cmdline.Option) error {
	if strings.HasPrefix(strings.TrimSpace(o.Value), "{") {
		dev, err := cmdline.ParseJSON(o.Value)
		if err != nil {
			return fmt.Errorf("-device: %w", err)
		}
		if off, ok := dev["iommu_platform"]; ok && !cmdline.IsOn(fmt.Sprint(off)) {
			return errNoIOMMU
		}
		driver, _ := dev["driver"].(string)
		if unmeasured(driver) {
			return errUnmeasured(driver)
		}
		if _, ok := dev["disable-legacy"]; !ok && isVirtioPCI(driver) {
			dev["disable-legacy"] = "on"
		}
		if _, ok := dev["bootindex"]; ok && l.bound {
			delete(dev, "bootindex")
			l.note(noBootindex)
		}
		if o.Value, err = cmdline.JSON(dev); err != nil {
			return err
		}
		l.twin.Keep(o)
		return nil
	}
	kvs := cmdline.Split(o.Value)
	if driver := cmp.Or(kvs.Get("driver"), kvs.Type()); unmeasured(driver) {
		return errUnmeasured(driver)
	}
	if off := kvs.Get("iommu_platform"); off != "" && !cmdline.IsOn(off) {
		return errNoIOMMU
	}
	if kvs.Get("bootindex") != "" && l.bound {
		kvs = kvs.Drop("bootindex")
		l.note(noBootindex)
	}
	if isVirtioPCI(cmp.Or(kvs.Get("driver"), kvs.Type())) && kvs.Get("disable-legacy") == "" {
		kvs = append(kvs, cmdline.Element{Key: "disable-legacy", Value: "on"})
	}
	l.twin.Keep(cmdline.Option{Name: "device", Value: kvs.String()})
	return nil
}

const noBootindex = "bootindex left out: RTMR1 names the kernel that is given, and the twin boots nothing else"

// isVirtioPCI reports whether a device may speak virtio of the legacy kind, which QEMU takes from
// confidential guests.
func isVirtioPCI(driver string) bool {
	return (strings.HasPrefix(driver, "virtio-") || strings.HasPrefix(driver, "vhost-")) &&
		(strings.HasSuffix(driver, "-pci") || driver == "virtio-vga")
}

func errUnmeasured(driver string) error {
	return fmt.Errorf("-device %s: what it adds to the guest is not measured; a confidential guest has its CPUs by "+
		"-smp, its memory by -m, and loads what its firmware loads", driver)
}

var errNoIOMMU = errors.New("-device …,iommu_platform=off: a confidential guest cannot use such a device on silicon")

// takeDrive gives both the first pflash drive, which has the firmware, and the twin all others.
func (l *lines) takeDrive(o cmdline.Option) error {
	kvs := cmdline.Split(o.Value)
	first := kvs.Get("if") == "pflash" && (kvs.Get("unit") == "0" || kvs.Get("unit") == "" && l.firmware == nil)
	if !first {
		l.twin.Keep(o)
		return nil
	}
	f, err := l.files.open(kvs.Get("file"))
	if err != nil {
		return fmt.Errorf("-drive: %w", err)
	}
	l.firmware = f
	kvs = kvs.Set("file", f.name()).Drop("readonly", "read-only")
	l.give(cmdline.Option{Name: "drive", Value: append(kvs, cmdline.Element{Key: "readonly", Value: "on"}).String()})
	return nil
}

// takeBlockdev gives both the nodes of the first pflash, and the twin all others.
func (l *lines) takeBlockdev(o cmdline.Option) error {
	n, err := cmdline.ParseNode(o.Value)
	switch {
	case err != nil:
		return err
	case !l.flash[n.Name]:
		l.twin.Keep(o)
		return nil
	case n.File == "":
		l.give(o)
		return nil
	}
	f, err := l.files.open(n.File)
	if err != nil {
		return fmt.Errorf("-blockdev: %w", err)
	}
	l.firmware = f
	value, err := cmdline.SetNodeFile(o.Value, f.name())
	if err != nil {
		return err
	}
	l.give(cmdline.Option{Name: "blockdev", Value: value})
	return nil
}
