package host

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/cpuid"

	"github.com/vmlatch/vmlatch/firmware/regular"
)

// KVM reports whether KVM of this host can run a guest's firmware, and why not. A
// /dev/kvm that opens is not enough: inside some sandboxes it exists without
// hardware virtualisation behind it and dies on the first unusual instruction.
func KVM() (ok bool, why string) { return Root("/").kvm() }

func (r Root) kvm() (bool, string) {
	if err := r.access("dev/kvm"); err != nil {
		return false, err.Error()
	}
	if !r.recorded() && cpuid.Virtualisation() {
		return true, "" // CPUID is asked faster than the kernel writes its file
	}
	f, err := regular.Open(r.path("proc/cpuinfo"))
	if err != nil {
		return false, err.Error()
	}
	defer f.Close()
	flags, found := cpuFlags(f)
	switch {
	case flags["vmx"] || flags["svm"]:
		return true, ""
	case found:
		return false, "/dev/kvm opens, but the processor shows neither vmx nor svm: firmware would not run"
	}
	return false, "/proc/cpuinfo lists no processor flags"
}

// cpuFlags reads the first processor's flags.
func cpuFlags(r io.Reader) (flags map[string]bool, found bool) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		name, list, _ := strings.Cut(lines.Text(), ":")
		if strings.TrimSpace(name) != "flags" {
			continue
		}
		flags = map[string]bool{}
		for flag := range strings.FieldsSeq(list) {
			flags[flag] = true
		}
		return flags, true
	}
	return nil, false
}

// access says why this user cannot use a device.
func (r Root) access(device string) error {
	if err := unix.Access(r.path(device), unix.R_OK|unix.W_OK); err != nil {
		return &fs.PathError{Op: "open", Path: "/" + device, Err: err}
	}
	return nil
}

// vmTypeSEV and so on are types of KVM virtual machines (Linux, arch/x86/include/uapi/asm/kvm.h):
// a kernel that has it takes KVM_SEV_INIT2.
const (
	vmTypeSEV = 2
	vmTypeSNP = 4
	vmTypeTDX = 5
)

// vmTypes asks KVM for the bits of the VM types that it offers (Linux,
// Documentation/virt/kvm/api.rst, KVM_CAP_VM_TYPES).
func (r Root) vmTypes() (uint32, error) {
	if r.recorded() {
		var v struct {
			Types uint32 `json:"vm-types"`
		}
		err := r.readRecorded("kvm.json", &v)
		return v.Types, err
	}
	fd, err := unix.Open(r.path("dev/kvm"), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &fs.PathError{Op: "open", Path: "/dev/kvm", Err: err}
	}
	defer unix.Close(fd)
	const checkExtension, capVMTypes = 0xAE03, 235
	v, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), checkExtension, capVMTypes)
	if errno != 0 {
		return 0, fmt.Errorf("ask KVM for its VM types: %w", errno)
	}
	return uint32(v), nil
}
