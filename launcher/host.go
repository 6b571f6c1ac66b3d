package launcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// HostConfig is a host's own settings: /etc/vmlatch/host.toml for root,
// $XDG_CONFIG_HOME/vmlatch/host.toml for others.
type HostConfig struct {
	RunDir   string        `toml:"run-dir" json:"run-dir"`
	StateDir string        `toml:"state-dir" json:"state-dir"`
	QEMU     string        `toml:"qemu" json:"qemu"`
	Emulate  EmulateConfig `toml:"emulate" json:"emulate"`

	file string
	set  map[string]bool
}

// EmulateConfig says how --emulate runs QEMU.
type EmulateConfig struct {
	Swtee string   `toml:"swtee" json:"swtee"` // program
	Args  []string `toml:"args" json:"args"`   // more options for it
}

// HostConfigFile is where the settings of the calling user are looked for.
func HostConfigFile() string {
	if os.Geteuid() == 0 {
		return "/etc/vmlatch/host.toml"
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "vmlatch/host.toml")
}

// LoadHostConfig reads a host's settings; a file that is not there means
// defaults, unless it was asked for by name.
func LoadHostConfig(file string, named bool) (*HostConfig, error) {
	c := &HostConfig{file: file, set: map[string]bool{}}
	b, err := os.ReadFile(file)
	if err != nil && (named || !errors.Is(err, fs.ErrNotExist)) {
		return nil, err
	}
	if err == nil {
		if err := decodeTOML(b, file, c); err != nil {
			return nil, err
		}
	}
	for key, v := range map[string]string{"run-dir": c.RunDir, "state-dir": c.StateDir, "qemu": c.QEMU, "emulate.swtee": c.Emulate.Swtee} {
		c.set[key] = v != ""
	}
	if c.RunDir == "" {
		c.RunDir = defaultRunDir()
	}
	if c.StateDir == "" {
		if c.StateDir, err = defaultStateDir(); err != nil {
			return nil, err
		}
	}
	if c.QEMU == "" {
		c.QEMU = "qemu-system-x86_64"
	}
	if c.Emulate.Swtee == "" {
		c.Emulate.Swtee = "swtee"
	}
	return c, nil
}

func defaultRunDir() string {
	if os.Geteuid() == 0 {
		return "/run/vmlatch"
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "vmlatch")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("vmlatch-%d", os.Geteuid()))
}

func defaultStateDir() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/lib/vmlatch", nil
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "vmlatch"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("no place for logs: %w; set state-dir in host.toml", err)
	}
	return filepath.Join(home, ".local/state/vmlatch"), nil
}

// MakeAbsolute makes the directories absolute: QEMU runs in another one.
func (c *HostConfig) MakeAbsolute() (err error) {
	for _, dir := range []*string{&c.RunDir, &c.StateDir} {
		if *dir, err = filepath.Abs(*dir); err != nil {
			return err
		}
	}
	if strings.HasPrefix(c.StateDir+"/", c.RunDir+"/") {
		return fmt.Errorf("state-dir %s lies in run-dir %s, where each directory is a running VM's", c.StateDir, c.RunDir)
	}
	return nil
}

// Root is where this host's VMs live.
func (c *HostConfig) Root() rundir.Root { return rundir.Root{Run: c.RunDir, State: c.StateDir} }

func (c *HostConfig) from(key string) string {
	if c.set[key] {
		return c.file
	}
	return "default"
}

// Facts are what a plan depends on besides the spec.
type Facts struct {
	QEMU        string   // path of the program
	QEMUFrom    string   // where that came from
	Emulator    []string // program and options to put before QEMU; nil for real hardware
	KVM         bool     // KVM can run a guest's firmware
	KVMReason   string   // why not
	CBitPos     int      // 0: the processor has no SEV
	IGVMFile    bool     // the spec's firmware is an IGVM file
	IGVM        bool     // QEMU can load such files; looked for only with IGVMFile
	IDBlock     []byte   // content of the spec's id-block and id-auth
	IDAuth      []byte
	Descriptors []ovmf.Descriptor // firmware of this machine, preferred first
}

// emulatedCBitPos is where swtee keeps the encryption bit. The launcher does not
// link the emulator; a test holds the two together.
const emulatedCBitPos = 51

// ErrHost is wrapped by errors about what this host lacks.
var ErrHost = errors.New("this host cannot")

// GatherFacts looks at the host. emulate asks for the emulated platform.
func GatherFacts(c *HostConfig, spec *Spec, emulate bool) (Facts, error) {
	f := Facts{QEMU: c.QEMU, QEMUFrom: c.from("qemu")}
	if spec != nil && spec.QEMU != "" {
		f.QEMU, f.QEMUFrom = spec.QEMU, "spec"
	}
	path, err := exec.LookPath(f.QEMU)
	if err != nil {
		return f, fmt.Errorf("%w: run QEMU: %v", ErrHost, err)
	}
	if f.QEMU, err = filepath.Abs(path); err != nil {
		return f, err
	}
	f.KVM, f.KVMReason = host.KVM()
	f.CBitPos = host.CBitPos()
	if emulate {
		swtee, err := findSwtee(c.Emulate.Swtee)
		if err != nil {
			return f, err
		}
		f.Emulator = []string{swtee}
		if dir := os.Getenv("SWTEE_PLATFORM"); dir != "" && !filepath.IsAbs(dir) {
			// It runs in another directory than the user's shell.
			if dir, err = filepath.Abs(dir); err != nil {
				return f, err
			}
			f.Emulator = append(f.Emulator, "--platform", dir)
		}
		f.Emulator = append(append(f.Emulator, c.Emulate.Args...), "--")
		f.CBitPos = emulatedCBitPos
	}
	if spec != nil {
		if f.IGVMFile = isIGVM(spec.Firmware.Image); f.IGVMFile {
			f.IGVM = knowsIGVM(f.QEMU)
		}
		if err := f.readIDBlock(spec); err != nil {
			return f, err
		}
	}
	if spec != nil && spec.Firmware.lookup() {
		// Descriptors that cannot be read are somebody else's; the others count.
		f.Descriptors, _ = ovmf.FindDescriptors(ovmf.DescriptorDirs()...)
	}
	return f, nil
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
	return err == nil && string(magic[:]) == "IGVM"
}

// knowsIGVM asks a QEMU for its object types.
func knowsIGVM(qemu string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, qemu, "-object", "help").Output()
	return err == nil && slices.Contains(strings.Fields(string(out)), "igvm-cfg")
}
