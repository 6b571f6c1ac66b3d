package check

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/bzimage"
	"github.com/vmlatch/vmlatch/firmware/nearest"
	"github.com/vmlatch/vmlatch/launcher/internal/diskimage"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// PortsFree is the check whose answer changes when a VM ends.
const PortsFree = "ports-free"

// nameChecks hold the names and files of a spec against what QEMU, the host and the kernel
// make of them: a start would meet it otherwise.
func nameChecks() []tee.Check {
	return []tee.Check{
		{
			ID:       "machine-known",
			Severity: tee.Refuse,
			Stage:    tee.HostStage,
			OfSpec:   true,
			Key:      "machine",
			When:     func(s *tee.Subject) bool { return s.Facts.Info.MachineTypes() != nil },
			Cause:    "this QEMU does not know the machine type",
			Fix:      "run the QEMU with -machine help, and correct the spec",
			Source:   "QEMU, query-machines",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				known := s.Facts.Info.MachineTypes()
				return tee.Verify(slices.Contains(known, s.Machine), "%s%s", s.Machine, near(s.Machine, known))
			},
		},
		{
			ID:       "device-known",
			Severity: tee.Refuse,
			Stage:    tee.HostStage,
			OfSpec:   true,
			Key:      "device",
			When:     func(s *tee.Subject) bool { return s.Facts.Info != nil && len(s.Devices) > 0 },
			Cause:    "this QEMU does not know the device, or one of its properties",
			Fix:      "run the QEMU with -device help, or -device NAME,help, and correct the spec",
			Source:   "QEMU, qom-list-properties",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				for _, d := range s.Devices {
					if why := deviceFault(s, d); why != "" {
						return tee.Failed, why
					}
				}
				return tee.OK, ""
			},
		},
		{
			ID:       PortsFree,
			Severity: tee.Refuse,
			Stage:    tee.PlanStage,
			Key:      "network",
			When:     func(s *tee.Subject) bool { return len(s.Networks) > 0 },
			Cause:    "a port of this host cannot be forwarded",
			Fix: "forward another port; those below 1024 need privileges" +
				" (net.ipv4.ip_unprivileged_port_start), and the address must be one of the host's",
			Source: "bind(2)",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				for _, n := range s.Networks {
					for _, f := range n.Forward {
						if err := canForward(f); err != nil {
							return tee.Failed, f + ": " + err.Error()
						}
					}
				}
				return tee.OK, ""
			},
		},
		{
			ID:       "something-boots",
			Severity: tee.Warn,
			OfSpec:   true,
			Cause:    "there is nothing to boot: no kernel, no disk, no other device",
			Fix:      "name a [kernel] or a [[disk]]",
			Source:   "vmlatch help spec",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				boots := s.Kernel.Image != "" || len(s.Disks) > 0 || len(s.Devices) > 0 || s.Firmware.Image != ""
				return tee.Verify(boots, "")
			},
		},
		{
			ID:       "kernel-measurable",
			Severity: tee.Refuse,
			Stage:    tee.PlanStage,
			Key:      "kernel.image",
			When:     func(s *tee.Subject) bool { return s.Kernel.Image != "" && s.KernelHashes },
			Cause: "QEMU would not measure the kernel, or nothing could boot it: it takes Linux's bzImages" +
				" and programs for UEFI",
			Fix:    "use a bzImage: next to a vmlinux it is arch/x86/boot/bzImage",
			Source: "QEMU, hw/i386/x86-common.c; kata-containers#11785",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				_, err := bzimage.Read(s.Kernel.Image)
				return tee.Verify(!errors.Is(err, bzimage.ErrNotLinux), "%v", err)
			},
		},
		{
			ID:       "initrd-fits",
			Severity: tee.Refuse,
			Stage:    tee.PlanStage,
			Key:      "kernel.initrd",
			When:     func(s *tee.Subject) bool { return s.Kernel.Image != "" && s.Kernel.Initrd != "" },
			Cause:    "QEMU would not load the initrd",
			Fix:      "give the VM more memory, make the initrd smaller, or use a kernel that takes one",
			Source:   "QEMU, hw/i386/x86-common.c, x86_load_linux",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				k, err := bzimage.Read(s.Kernel.Image)
				size, sizeErr := s.InitrdSize(s.Traits())
				if err := errors.Join(err, sizeErr); err != nil { // other checks' matter
					return tee.OK, ""
				}
				why := k.Initrd(size, bzimage.Below4G(uint64(s.Memory)))
				return tee.Verify(why == "", "%s", why)
			},
		},
		{
			ID:       "cmdline-whole",
			Severity: tee.Refuse,
			Stage:    tee.PlanStage,
			Key:      "kernel.cmdline",
			When:     func(s *tee.Subject) bool { return s.Kernel.Image != "" && s.KernelHashes },
			Cause: "the whole command line is measured, and the kernel drops what is too long: its end is not" +
				" in force",
			Fix:    "shorten the command line",
			Source: "Linux, Documentation/arch/x86/boot.rst, cmdline_size",
			Look:   cmdlineFits,
		},
		{
			ID:       "cmdline-length",
			Severity: tee.Warn,
			Stage:    tee.PlanStage,
			Key:      "kernel.cmdline",
			When:     func(s *tee.Subject) bool { return s.Kernel.Image != "" && !s.KernelHashes },
			Cause:    "the kernel drops what of its command line is too long",
			Fix:      "shorten the command line",
			Source:   "Linux, Documentation/arch/x86/boot.rst, cmdline_size",
			Look:     cmdlineFits,
		},
		{
			ID:       "cmdline-characters",
			Severity: tee.Warn,
			OfSpec:   true,
			Key:      "kernel.cmdline",
			When:     func(s *tee.Subject) bool { return s.Kernel.Cmdline != "" },
			Cause:    "the command line has a character that a word processor or a web page has put there",
			Fix:      "type it anew: hyphens, quotes and spaces are plain ones",
			Source:   "Linux, Documentation/admin-guide/kernel-parameters.rst",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				odd := bzimage.Unusual(s.Kernel.Cmdline)
				return tee.Verify(odd == "", "%s", odd)
			},
		},
		{
			ID:       "firmware-image",
			Severity: tee.Refuse,
			Stage:    tee.PlanStage,
			Key:      "firmware.image",
			When:     func(s *tee.Subject) bool { return s.Image != nil && !s.Image.IGVM },
			Cause:    "the file can be no firmware image: the guest would never run",
			Fix:      "name an image for x86, raw and whole",
			Source:   "lxc/incus#796; Intel SDM, volume 3, processor state after reset",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				const block = 64 << 10 // QEMU, hw/i386/x86-common.c, x86_bios_rom_init
				if s.Image.Odd == "" && slices.Contains(s.Plan.Argv, "-bios") && s.Image.Size%block != 0 {
					return tee.Failed, fmt.Sprintf("it has %d bytes, and QEMU takes only whole blocks of 64 KiB"+
						" (cut off, or padded)", s.Image.Size)
				}
				return tee.Verify(s.Image.Odd == "", "%s", s.Image.Odd)
			},
		},
		{
			ID:       "firmware-memory",
			Severity: tee.Refuse,
			Stage:    tee.PlanStage,
			Key:      "memory",
			When:     func(s *tee.Subject) bool { return s.Image != nil && s.Image.Reach[s.Traits().Name] > 0 },
			Cause:    "the firmware's metadata names memory that the guest does not have",
			Fix:      "give the VM more memory, or use another build of the firmware",
			Source:   "QEMU, which loads the sections of metadata into the guest's memory",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				end, low := s.Image.Reach[s.Traits().Name], bzimage.Below4G(uint64(s.Memory))
				return tee.Verify(end <= low, "it reaches to %#x, and the memory below 4 GiB ends at %#x", end, low)
			},
		},
		{
			ID:       "vars-image",
			Severity: tee.Refuse,
			Stage:    tee.PlanStage,
			Key:      "firmware.vars",
			When:     func(s *tee.Subject) bool { return s.Firmware.Vars != "" },
			Cause:    "the file can be no variable store: QEMU would write into it as if it were one",
			Fix:      "copy the one that belongs to the firmware; qemu-img convert -O raw makes one of a qcow2 image",
			Source:   "QEMU, hw/i386/pc_sysfw.c, pc_system_flash_map",
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				info, err := diskimage.Read(s.Firmware.Vars)
				stat, statErr := os.Stat(s.Firmware.Vars)
				switch {
				case errors.Is(err, diskimage.ErrHeader):
					return tee.Failed, "it is a disk image: " + err.Error()
				case errors.Join(err, statErr) != nil: // another check's matter
					return tee.OK, ""
				case info.Format != "raw":
					return tee.Failed, "it is a disk image: " + info.Format
				case stat.Mode().IsRegular() && (stat.Size() == 0 || stat.Size()%4096 != 0):
					return tee.Failed, fmt.Sprintf("it has %d bytes, and QEMU maps only whole pages", stat.Size())
				}
				return tee.OK, ""
			},
		},
	}
}

func near(name string, known []string) string {
	if hint := nearest.Hint(name, known); hint != "" {
		return ": " + hint
	}
	return ""
}

func cmdlineFits(s *tee.Subject) (tee.Verdict, string) {
	k, err := bzimage.Read(s.Kernel.Image)
	switch {
	case errors.Is(err, bzimage.ErrNotLinux):
		return tee.OK, "" // another check's matter
	case err != nil:
		return tee.Unknown, err.Error()
	}
	cut := k.Cut(s.Kernel.Cmdline)
	return tee.Verify(cut == "", "%s", cut)
}

// deviceFault says what of a table [[device]] QEMU does not know; "" if all is known.
func deviceFault(s *tee.Subject, device map[string]any) string {
	driver := plan.Texts(device)["driver"]
	properties, ok := s.Facts.Info.Objects[driver]
	if !ok {
		return driver
	}
	for _, name := range slices.Sorted(maps.Keys(device)) {
		known := append(slices.Clone([]string(properties)), "driver", "id", "bus", "failover_pair_id")
		if !slices.Contains(known, name) && !strings.HasPrefix(name, "x-") {
			return fmt.Sprintf("%s has no property %s%s", driver, name, near(name, known))
		}
	}
	return ""
}

// canForward takes a port for a moment, as QEMU would.
func canForward(rule string) error {
	p := strings.Split(rule, ":")
	if len(p) != 4 {
		return nil // the plan refuses it
	}
	address := net.JoinHostPort(p[1], p[2])
	if p[0] == "udp" {
		c, err := net.ListenPacket("udp4", address)
		if err == nil {
			_ = c.Close()
		}
		return inWords(err)
	}
	l, err := net.Listen("tcp4", address)
	if err == nil {
		_ = l.Close()
	}
	return inWords(err)
}

// inWords is the cause of an error of the network.
func inWords(err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return errors.New("another program has the port")
	case errors.Is(err, unix.EACCES):
		return errors.New("this user may not take a port below 1024")
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return errors.New("the host does not have the address")
	}
	return err
}
