package launcher

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/sev/exchange"
)

// validate refuses specs that make no sense whatever the technology. What a
// technology needs is in its row of the table, what is not secure in the checks.
func (s *Spec) validate() error {
	if err := exchange.CheckName(s.Name); err != nil {
		return s.errorf("name", "%v", err)
	}
	if s.CPUs < 1 || s.CPUs > 512 {
		return s.errorf("cpus", "%d: must be 1 to 512", s.CPUs)
	}
	if s.Memory < 16<<20 || s.Memory > 64<<40 || s.Memory%(1<<20) != 0 {
		return s.errorf("memory", "%v: must be whole MiB, at least 16MiB", s.Memory)
	}
	if !slices.Contains([]string{"auto", "kvm", "tcg"}, s.Accel) {
		return s.errorf("accel", "%q: must be auto, kvm or tcg", s.Accel)
	}
	if s.Kernel.Image == "" && (s.Kernel.Initrd != "" || s.Kernel.Cmdline != "") {
		return s.errorf("kernel", "initrd and cmdline need a kernel image")
	}
	if t := s.Firmware.Type; t != "" && t != FirmwareBIOS && t != FirmwareUEFI {
		return s.errorf("firmware.type", "%q: must be bios or uefi", t)
	}
	for _, text := range append([]string{s.Kernel.Cmdline, s.Machine, s.CPU}, s.paths()...) {
		if strings.ContainsRune(text, 0) {
			return s.errorf("", "a NUL character in %q", text)
		}
	}
	for i, d := range s.Disks {
		if d.Image == "" {
			return s.errorf(fmt.Sprintf("disk %d", i+1), "image is missing")
		}
		if d.Format != "raw" && d.Format != "qcow2" {
			return s.errorf(fmt.Sprintf("disk %d", i+1), "format %q: must be raw or qcow2", d.Format)
		}
	}
	for i, n := range s.Networks {
		if n.Mode != "user" {
			return s.errorf(fmt.Sprintf("network %d", i+1), "mode %q: must be user", n.Mode)
		}
	}
	return s.validateBackend()
}

func (s *Spec) validateBackend() error {
	b := s.Backend
	switch {
	case b.Type != "" && b.Type != "ram" && b.Type != "memfd":
		return s.errorf("memory-backend.type", "%q: must be ram or memfd", b.Type)
	case b.HugePages != 0 && (b.HugePages < 4<<10 || b.HugePages&(b.HugePages-1) != 0 || s.Memory%b.HugePages != 0):
		return s.errorf("memory-backend.hugepages", "%v: must be a page size, of which memory is a multiple", b.HugePages)
	case b.Prealloc != nil && *b.Prealloc && b.Reserve != nil && !*b.Reserve:
		return s.errorf("memory-backend.reserve", "false: memory that is taken at once (prealloc) is reserved, too")
	case b.HugePages != 0 && b.Type == "ram":
		return s.errorf("memory-backend.hugepages", `needs type = "memfd"`)
	}
	for i, d := range s.Devices {
		if name, ok := d["driver"].(string); !ok || name == "" {
			return s.errorf(fmt.Sprintf("device %d", i+1), `driver must be a device's name, such as "virtio-rng-pci"`)
		}
	}
	for key, tables := range map[string][]map[string]any{"device": s.Devices, "object": s.Objects} {
		for i, t := range tables {
			if !plain(t) {
				return s.errorf(fmt.Sprintf("%s %d", key, i+1), "values must be texts, whole or finite numbers, true or false, lists and tables of them")
			}
		}
	}
	for i, o := range s.Objects {
		for _, key := range []string{"qom-type", "id"} {
			if v, ok := o[key].(string); !ok || v == "" {
				return s.errorf(fmt.Sprintf("object %d", i+1), "%s is missing, or no text", key)
			}
		}
	}
	return nil
}

func (s *Spec) paths() []string {
	p := []string{s.Firmware.Image, s.Firmware.Vars, s.Kernel.Image, s.Kernel.Initrd, s.Confidential.OwnerCert, s.Confidential.Session, s.Confidential.IDBlock, s.Confidential.IDAuth, s.Confidential.QuoteSocket}
	for _, d := range s.Disks {
		p = append(p, d.Image)
	}
	return p
}

// plain says whether a value is one that JSON has, too.
func plain(v any) bool {
	switch v := v.(type) {
	case string, bool, int64:
		return true
	case float64:
		return !math.IsNaN(v) && !math.IsInf(v, 0)
	case []any:
		return !slices.ContainsFunc(v, func(e any) bool { return !plain(e) })
	case map[string]any:
		for _, e := range v {
			if !plain(e) {
				return false
			}
		}
		return true
	}
	return false
}
