package host

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/keyring"
)

// Firmware returns the firmware that QEMU's descriptors name, without those that
// cannot be read.
func (r Root) Firmware() []ovmf.Descriptor {
	dirs := ovmf.DescriptorDirs()
	if r.recorded() {
		for i := range dirs {
			dirs[i] = r.path(dirs[i])
		}
	}
	found, _ := ovmf.FindDescriptors(dirs...)
	return found
}

// Root is a directory below which a host's files lie: "/" for this host.
type Root string

// recordedDir holds facts that come from CPUID, MSRs and ioctls.
const recordedDir = "recorded"

// maxRead bounds every file that is read below a root.
const maxRead = 4 << 20

func (r Root) path(name string) string { return filepath.Join(string(r), name) }

// recorded reports whether the root is a record and not this host.
func (r Root) recorded() bool { return filepath.Clean(string(r)) != "/" }

// OnlineCPUs are the host's processors that can be used, as a list such as 0-7,16
// (Documentation/admin-guide/cputopology.rst).
func (r Root) OnlineCPUs() string { return r.word("/sys/devices/system/cpu/online") }

// MachineID is the id of this host's system (machine-id(5)); "" if it has none.
func (r Root) MachineID() string { return r.word("/etc/machine-id") }

// read returns a file's content. Kernel files tell no size, so none is asked for.
func (r Root) read(name string) ([]byte, error) {
	return regular.Read(r.path(name), maxRead)
}

// word returns a small file's content without the space around it; "" if it cannot
// be read. Settings of the kernel are many and small: package os would register
// each with its poller, for nothing.
func (r Root) word(name string) string {
	fd, err := unix.Open(r.path(name), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	var b [4 << 10]byte
	n, err := unix.Read(fd, b[:])
	if err != nil || n < 0 {
		return ""
	}
	return strings.TrimSpace(string(b[:n]))
}

func (r Root) readRecorded(name string, to any) error {
	b, err := r.read(filepath.Join(recordedDir, name))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, to); err != nil {
		return fmt.Errorf("%s: %w", r.path(filepath.Join(recordedDir, name)), err)
	}
	return nil
}

// msr reads a model-specific register of the first processor (msr(4)).
func (r Root) msr(n uint32) (uint64, error) {
	if r.recorded() {
		var all map[string]string
		if err := r.readRecorded("msr.json", &all); err != nil {
			return 0, err
		}
		text, ok := all[fmt.Sprintf("%#x", n)]
		if !ok {
			return 0, fmt.Errorf("MSR %#x is not recorded", n)
		}
		return strconv.ParseUint(text, 0, 64)
	}
	return readMSR(r.path("dev/cpu/0/msr"), n)
}

func readMSR(device string, n uint32) (uint64, error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var b [8]byte
	if _, err := f.ReadAt(b[:], int64(n)); err != nil {
		return 0, fmt.Errorf("MSR %#x: %w", n, err)
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

// mktmeKeys asks the kernel for Intel's type of key.
func (r Root) mktmeKeys() Answer {
	if r.recorded() {
		var types map[string]Answer
		if err := r.readRecorded("keys.json", &types); err != nil || types[string(keyring.TypeMKTME)] == "" {
			return Unknown
		}
		return types[string(keyring.TypeMKTME)]
	}
	known, err := keyring.Known(keyring.TypeMKTME)
	if err != nil {
		return Unknown
	}
	return answer(known)
}

// dmesg returns the kernel's log.
func (r Root) dmesg() (string, error) {
	if r.recorded() {
		b, err := r.read(filepath.Join(recordedDir, "dmesg.txt"))
		return string(b), err
	}
	size, err := unix.Klogctl(unix.SYSLOG_ACTION_SIZE_BUFFER, nil)
	if err != nil {
		return "", fmt.Errorf("kernel log: %w", err)
	}
	b := make([]byte, min(size, maxRead))
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, b)
	if err != nil {
		return "", fmt.Errorf("kernel log: %w", err)
	}
	return string(b[:n]), nil
}

// recordFiles are the files that a report depends on, as patterns.
var recordFiles = []string{
	"proc/cpuinfo", "proc/cmdline", "proc/meminfo", "proc/sys/kernel/osrelease",
	"sys/kernel/mm/hugepages/*/free_hugepages", "sys/devices/system/node/has_memory",
	"sys/devices/system/node/node*/hugepages/*/free_hugepages",
	"sys/module/kvm_amd/parameters/*", "sys/module/kvm_intel/parameters/*", "sys/module/kvm/parameters/*",
	"sys/devices/system/cpu/smt/active", "sys/kernel/iommu_groups/0/type",
	"sys/fs/cgroup/misc.*", "sys/fs/cgroup/misc/misc.*",
	"etc/qemu/firmware/*.json", "usr/share/qemu/firmware/*.json",
}

// recordOnly is what is kept of files that tell more than a report reads: a
// kernel's command line may hold passwords.
var recordOnly = map[string]*kept{
	"proc/cmdline": {keptOptions, false},
	"proc/cpuinfo": {compiled(`(?m)^(?:flags|vendor_id)\s*:.*\n`), true},
	"proc/meminfo": {compiled(`(?m)^MemAvailable:.*\n`), true},
}

// keptOptions are the options on a kernel's command line that a report depends on.
var keptOptions = compiled(
	`\b(?:iommu|amd_iommu|intel_iommu|iommu\.passthrough|mem_encrypt|kvm_amd\.\S+|kvm_intel\.\S+)=\S+`,
)

// kept is a pattern of what is kept, and whether only of the first processor.
type kept struct {
	pattern pattern
	once    bool
}

// findAll returns the matches, joined.
func (k *kept) findAll(b []byte) []byte {
	all := k.pattern().FindAll(b, -1)
	if k.once {
		return bytes.Join(all[:min(2, len(all))], nil)
	}
	return append(bytes.Join(all, []byte(" ")), '\n')
}

// recordNodes are files of which only the presence counts.
var recordNodes = []string{"dev/kvm", "dev/sev", "sys/class/iommu/*", "var/run/tdx-qgs/qgs.socket"}

// Record copies what a report depends on from this host into a new directory.
// The kernel's log is left out but for the lines that a report reads.
func (r Root) Record(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	to := Root(dir)
	for _, list := range []struct {
		patterns []string
		content  bool
	}{{recordFiles, true}, {recordNodes, false}} {
		for _, p := range list.patterns {
			names, _ := filepath.Glob(r.path(p))
			for _, name := range names {
				rel, err := filepath.Rel(string(r), name)
				if err != nil {
					return err
				}
				var b []byte
				if list.content {
					if b, err = r.read(rel); err != nil {
						continue // what this user cannot read, a report does not know either
					}
					if keep := recordOnly[rel]; keep != nil {
						b = keep.findAll(b)
					}
				}
				if err := to.write(rel, b); err != nil {
					return err
				}
			}
		}
	}
	return r.recordRest(to)
}

func (r Root) recordRest(to Root) error {
	cpu, err := r.cpu()
	if err != nil {
		return err
	}
	parts := map[string]any{"cpu.json": cpu}
	msrs := map[string]string{}
	for _, n := range []uint32{msrSYSCFG, msrKeyIDPartitioning, msrTMECapability, msrTMEActivate} {
		if v, err := r.msr(n); err == nil {
			msrs[fmt.Sprintf("%#x", n)] = fmt.Sprintf("%#x", v)
		}
	}
	parts["msr.json"] = msrs
	parts["keys.json"] = map[keyring.Type]Answer{keyring.TypeMKTME: r.mktmeKeys()}
	if types, err := r.vmTypes(); err == nil {
		parts["kvm.json"] = map[string]uint32{"vm-types": types}
	}
	var failed error
	for name, v := range parts {
		b, err := json.MarshalIndent(v, "", "  ")
		failed = errors.Join(failed, err, to.write(filepath.Join(recordedDir, name), append(b, '\n')))
	}
	if log, err := r.dmesg(); err == nil {
		failed = errors.Join(failed, to.write(filepath.Join(recordedDir, "dmesg.txt"), []byte(relevantLines(log))))
	}
	return failed
}

func (r Root) write(name string, b []byte) error {
	p := r.path(name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return err
	}
	return os.WriteFile(p, b, 0o644)
}

// exists reports whether a file is there, also one that may not be looked at.
func (r Root) exists(name string) bool {
	_, err := os.Lstat(r.path(name))
	return err == nil || !errors.Is(err, fs.ErrNotExist) && errors.Is(err, fs.ErrPermission)
}
