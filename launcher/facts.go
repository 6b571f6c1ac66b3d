package launcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/igvm"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/launcher/host"
)

// Facts are what a plan depends on besides the spec.
type Facts struct {
	QEMU        string            // path of the program
	QEMUFrom    string            // where that came from
	Info        *host.QEMU        // what it can do; nil for plain VMs, for which it does not count
	Emulator    []string          // program and options to put before QEMU; nil for real hardware
	Host        *host.Report      // what the machine can do
	Slots       map[string]int    // limits of pools, by the operator
	SlotDir     string            // where leases lie
	MaxLock     uint64            // bytes of memory that QEMU may be allowed to pin
	Sidecars    []Sidecar         // what the disk images demand
	IGVMFile    bool              // the spec's firmware is an IGVM file
	Firmware    *firmwareFacts    // what the spec's firmware can do, where that decides
	HugePages   map[uint64]uint64 // free ones by size in bytes; nil unless the spec uses them
	IDBlock     []byte            // content of the spec's id-block and id-auth
	IDAuth      []byte
	Descriptors []ovmf.Descriptor // firmware of this machine, preferred first
}

// emulated says whether the platform is an emulated one.
func (f *Facts) emulated() bool { return f.Emulator != nil }

// emulatedCBitPos is where swtee keeps the encryption bit. The launcher does not
// link the emulator; a test holds the two together.
const emulatedCBitPos = 51

func (f *Facts) cBitPos() int {
	switch {
	case f.emulated():
		return emulatedCBitPos
	case f.Host.SEV != nil:
		return f.Host.SEV.CBitPos
	}
	return 0
}

// ErrHost is wrapped by errors about what this host lacks.
var ErrHost = errors.New("this host cannot")

// GatherFacts looks at the host, for a spec or for none. emulate asks for the
// emulated platform.
func GatherFacts(ctx context.Context, c *HostConfig, spec *Spec, emulate bool) (Facts, error) {
	f := Facts{QEMU: c.QEMU, QEMUFrom: c.from("qemu"), Slots: c.Slots}
	if spec != nil && spec.QEMU != "" {
		f.QEMU, f.QEMUFrom = spec.QEMU, "spec"
	}
	path, err := exec.LookPath(f.QEMU)
	if err != nil {
		return f, &HostError{Want: "run QEMU", Why: err.Error(), Fix: "install it (Debian: qemu-system-x86), or name one with qemu = in the spec or in host.toml", Check: "qemu-object"}
	}
	if f.QEMU, err = filepath.Abs(path); err != nil {
		return f, err
	}
	f.SlotDir, f.MaxLock = c.SlotDir(), maxLock()
	if emulate {
		if f.Emulator, err = emulator(c); err != nil {
			return f, err
		}
	}
	if spec != nil {
		if f.Sidecars, err = readSidecars(spec); err != nil {
			return f, err
		}
	}
	detect := host.DetectWithoutLog
	if spec.needsKernelLog(f.Sidecars) {
		detect = host.Detect
	}
	if f.Host, err = detect("/"); err != nil || spec == nil {
		return f, err
	}
	f.IGVMFile = isIGVM(spec.Firmware.Image)
	if len(spec.asked) > 1 {
		f.Firmware = readFirmware(spec.Firmware.Image)
	}
	if spec.Backend.HugePages != 0 {
		f.HugePages = host.Root("/").FreeHugePages()
	}
	if err := f.readIDBlock(spec); err != nil {
		return f, err
	}
	// The image may ask for firmware that the spec does not name.
	if spec.Firmware.lookup() || len(f.Sidecars) > 0 && spec.Firmware.Image == "" {
		f.Descriptors = host.Root("/").Firmware()
	}
	if !spec.wantsConfidential(f.Sidecars) {
		return f, nil
	}
	var more []string
	if o := spec.Confidential.MKTME.Object; o != "" {
		more = append(more, o)
	}
	if f.Info, err = (host.Cache{Dir: c.CacheDir}).Probe(ctx, f.QEMU, more...); err != nil {
		return f, fmt.Errorf("%w: %w", ErrHost, err)
	}
	return f, nil
}

// emulator is the command that runs QEMU on the emulated platform.
func emulator(c *HostConfig) ([]string, error) {
	swtee, err := findSwtee(c.Emulate.Swtee)
	if err != nil {
		return nil, err
	}
	argv := []string{swtee}
	if dir := os.Getenv("SWTEE_PLATFORM"); dir != "" && !filepath.IsAbs(dir) {
		// It runs in another directory than the user's shell.
		if dir, err = filepath.Abs(dir); err != nil {
			return nil, err
		}
		argv = append(argv, "--platform", dir)
	}
	return append(append(argv, c.Emulate.Args...), "--"), nil
}

// findSwtee looks in PATH, and beside the running program.
func findSwtee(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return filepath.Abs(path)
	}
	if self, e := os.Executable(); e == nil {
		if beside, e := exec.LookPath(filepath.Join(filepath.Dir(self), name)); e == nil {
			return beside, nil
		}
	}
	return "", fmt.Errorf("%w: emulate: %v", ErrHost, err)
}

// openRegular opens a file, and nothing that could let its reader wait.
func openRegular(file string) (*os.File, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		_ = f.Close()
		return nil, errors.Join(err, fmt.Errorf("%s: is no regular file", file))
	}
	return f, nil
}

// isIGVM says whether a file begins as IGVM files do.
func isIGVM(file string) bool {
	f, err := openRegular(file)
	if err != nil {
		return false
	}
	defer f.Close()
	var magic [4]byte
	_, err = io.ReadFull(f, magic[:])
	return err == nil && igvm.Is(magic[:])
}
