package launcher

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/bytesize"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/tpm/predict"
	"github.com/vmlatch/vmlatch/launcher/cgroup"
	"github.com/vmlatch/vmlatch/launcher/confine"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/spec"
	"github.com/vmlatch/vmlatch/launcher/swtpm"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// Config is where and how specs are carried out.
type Config struct {
	Host    *spec.HostConfig // the host's settings; nil for the calling user's
	Emulate bool             // on the emulated platform, which protects nothing
	Record  host.Root        // a record of a host to look at instead; "" for this one
	// Stage is the command line of a program that runs [confine.Run]; nil to confine nothing.
	Stage []string
}

// host returns the host's settings.
func (c *Config) host() (*spec.HostConfig, error) {
	if c.Host != nil {
		own := *c.Host
		return &own, own.MakeAbsolute()
	}
	h, err := LoadHostConfig(spec.HostConfigFile(), false)
	if err != nil {
		return nil, err
	}
	return h, h.MakeAbsolute()
}

// GatherFacts looks at the host, for a spec or (nil) for none.
func GatherFacts(ctx context.Context, c Config, s *tee.Spec) (*plan.Facts, error) {
	h, err := c.host()
	if err != nil {
		return nil, err
	}
	f := &plan.Facts{QEMU: h.QEMU, QEMUFrom: h.From("qemu"), Slots: h.Slots, SlotDir: h.SlotDir(), MaxLock: maxLock()}
	if s != nil && s.Guest().QEMU != "" {
		f.QEMU, f.QEMUFrom = s.Guest().QEMU, "spec"
	}
	if f.QEMU, err = findQEMU(f.QEMU); err != nil {
		return nil, err
	}
	if h.Logs.Keeper {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		f.LogKeeper = &plan.LogKeeper{Program: self, Max: int64(h.Logs.Max)}
	}
	if c.Emulate {
		if f.Emulator, err = emulator(h); err != nil {
			return nil, err
		}
	}
	f.Confine = confinement(&c, f.QEMU, s)
	if s != nil {
		if f.Demands, err = demandsOf(s); err != nil {
			return nil, err
		}
	}
	root := c.Record
	if root == "" {
		root = "/"
	}
	detect := host.DetectWithoutLog
	if c.Record != "" || s != nil && s.MayBe(f.Demands, needsKernelLog) {
		detect = host.Detect
	}
	if f.Host, err = detect(root); err != nil && c.Record != "" {
		return nil, &fault.Error{
			Kind: fault.Usage, Op: "look at the host", Err: err, Fix: fault.FixRecord,
		}
	}
	if err != nil {
		return nil, fmt.Errorf("look at the host: %w", err)
	}
	if s == nil {
		return f, nil
	}
	return f, factsFor(ctx, h, s, root, f)
}

// factsFor adds what a spec's plan depends on.
func factsFor(ctx context.Context, h *spec.HostConfig, s *tee.Spec, root host.Root, f *plan.Facts) (err error) {
	g := s.Guest()
	if g.TPM.On() {
		if f.TPM, err = tpmFacts(h, &g); err != nil {
			return err
		}
	}
	if g.Pin.On() {
		if f.Processors, err = plan.ParseCPUs(root.OnlineCPUs()); err != nil {
			return fmt.Errorf("look at the host: %w", err)
		}
	}
	if g.Limits.On() {
		f.Groups, f.NoGroups = cgroup.Find("/")
		f.GroupsEnd = f.Groups != nil && f.Groups.EndsWithSession()
	}
	if err := shareFacts(&g, f); err != nil {
		return err
	}
	for _, p := range g.PCI {
		if f.PCI == nil {
			f.PCI, f.OpensVFIO = map[string]*host.PCIDevice{}, map[string]bool{}
		}
		f.PCI[p.Address] = root.PCI(p.Address)
		f.OpensVFIO[p.Address] = root.CanOpenVFIO(f.PCI[p.Address])
	}
	confidential := s.MayBe(f.Demands, func(t plan.Traits) bool { return t.Confidential })
	if err := networkFacts(&g, root, confidential, f); err != nil {
		return err
	}
	f.IGVM = tee.IsIGVM(g.Firmware.Image)
	if len(s.Asked()) > 1 {
		f.Image = tee.ReadImage(g.Firmware.Image)
	}
	nodes := g.Backend.HostNodes()
	if nodes != nil {
		if f.Nodes, err = plan.ParseCPUs(root.Nodes()); err != nil {
			return fmt.Errorf("look at the host's nodes: %w", err)
		}
	}
	switch {
	case g.Backend.HugePages != 0 && nodes != nil:
		f.HugePages = root.FreeHugePagesOn(nodes)
	case g.Backend.HugePages != 0:
		f.HugePages = root.FreeHugePages()
	}
	if f.OwnerFiles, err = s.ReadOwnerFiles(); err != nil {
		return err
	}
	// The image may ask for firmware that the spec does not name.
	if g.Firmware.Lookup() || len(f.Demands) > 0 && g.Firmware.Image == "" {
		f.Descriptors = host.Root("/").Firmware()
	}
	// Of a plain VM QEMU is asked only about names that the spec gives, or that have changed.
	names := g.CPU != "" || s.File().Has("machine") || len(g.Devices) > 0 || g.Broker.Connect != "" ||
		len(g.PCI) > 0 || g.Networks.Linked()
	if !names && !confidential {
		return nil
	}
	types := s.Patched()
	if len(g.PCI) > 0 {
		types = append(types, plan.IOMMUFD)
	}
	for _, d := range g.Devices {
		types = append(types, plan.Texts(d)["driver"])
	}
	if f.Info, err = (host.Cache{Dir: h.CacheDir}).Probe(ctx, f.QEMU, types...); err != nil {
		return &fault.Error{Kind: fault.Host, Op: "ask QEMU what it can do", Err: err}
	}
	return nil
}

// tpmFacts looks for what emulates a TPM, and at the state that it has.
func tpmFacts(h *spec.HostConfig, g *plan.Guest) (*plan.TPMProgram, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	t := &plan.TPMProgram{Keeper: self}
	if t.Program, err = swtpm.Find(); err != nil {
		return nil, &fault.Error{
			Kind: fault.Host, Op: "emulate a TPM", Err: err, Check: fault.TPMProgram,
			Fix: fault.FixSwtpm,
		}
	}
	t.Files, _ = confine.Program(t.Program) // else it confines itself alone
	if g.TPM.State == plan.TPMPersistent {
		switch encrypted, err := swtpm.Encrypted(h.Root().TPMState(g.Name)); {
		case err == nil:
			t.Encrypted = &encrypted
		case !errors.Is(err, fs.ErrNotExist):
			return nil, &fault.Error{
				Kind: fault.Host, Op: "read the TPM's state", Err: err, Check: fault.TPMState,
				Fix: "put a backup back; or make a new TPM, which opens nothing that was sealed: vmlatch rm --tpm",
			}
		}
	}
	if g.TPM.Key != "" {
		key, err := g.TPM.ReadKey()
		if err != nil {
			e := g.File.Errorf("tpm.key", "%v", err)
			e.Fix = "(umask 077; head -c 32 /dev/urandom > FILE) makes one; who loses it loses the TPM"
			if t.Encrypted != nil {
				e.Fix = "name the key that the TPM was made with; a new one opens nothing"
			}
			return nil, e
		}
		clear(key)
	}
	t.Firmware = tpmFirmware(host.Cache{Dir: h.CacheDir}, &g.Firmware)
	return t, nil
}

// tpmFirmware says why a guest's firmware measures nothing into a TPM; "" if it does, or if that is
// not known.
func tpmFirmware(c host.Cache, f *plan.Firmware) string {
	switch {
	case f.Lookup():
		return ""
	case f.Image == "":
		return "QEMU's own firmware measures into no PCR that is predicted"
	}
	why, err := c.Text("tpm-firmware", f.Image, func() (string, error) { // unpacking takes a while
		b, err := ovmf.ReadFile(f.Image)
		if err == nil {
			_, err = predict.ReadFirmware(b)
		}
		if errors.Is(err, predict.ErrNoTPM) {
			return err.Error(), nil
		}
		return "", err
	})
	if err != nil {
		return "" // what cannot be read is another check's matter
	}
	return why
}

func needsKernelLog(t plan.Traits) bool { return t.KernelLog }

func findQEMU(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", &fault.Error{
			Kind: fault.Host, Op: "run QEMU", Err: err, Check: fault.QEMUObject,
			Fix: "install it (Debian: qemu-system-x86), or name one with qemu = in the spec or in host.toml; " +
				`the examples' own comes with "make qemu-matrix"`,
		}
	}
	return filepath.Abs(path)
}

// demandsOf reads the demands of a spec's disk images.
func demandsOf(s *tee.Spec) (list []*spec.Demands, err error) {
	for _, disk := range s.Guest().Disks {
		d, err := s.File().LoadDemands(disk.Image)
		if err != nil {
			return nil, err
		}
		if d == nil {
			continue
		}
		if err := tee.CheckDemands(d); err != nil {
			return nil, err
		}
		list = append(list, d)
	}
	return list, nil
}

// emulator is the command that runs QEMU on the emulated platform.
func emulator(h *spec.HostConfig) ([]string, error) {
	swtee, err := findSwtee(h.Emulate.Swtee)
	if err != nil {
		return nil, err
	}
	argv := []string{swtee}
	if dir := os.Getenv("SWTEE_PLATFORM"); dir != "" && !filepath.IsAbs(dir) {
		// Its working directory differs from the user's shell's.
		if dir, err = filepath.Abs(dir); err != nil {
			return nil, err
		}
		argv = append(argv, "--platform", dir)
	}
	return append(append(argv, h.Emulate.Args...), "--"), nil
}

// findSwtee looks in PATH, and next to the running program.
func findSwtee(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return filepath.Abs(path)
	}
	if self, e := os.Executable(); e == nil {
		if next, e := exec.LookPath(filepath.Join(filepath.Dir(self), name)); e == nil {
			return next, nil
		}
	}
	return "", &fault.Error{
		Kind: fault.Host, Op: "emulate", Err: err,
		Fix: "install swtee, or name the program with swtee = in [emulate] of host.toml",
	}
}

// maxLock is how much memory a child may be allowed to pin, in bytes.
func maxLock() uint64 {
	var l unix.Rlimit
	if mayRaiseLimits() {
		return math.MaxUint64
	}
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l) != nil {
		return 0
	}
	return l.Max
}

// mayRaiseLimits reports whether this process has CAP_SYS_RESOURCE (capabilities(7)).
func mayRaiseLimits() bool {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&head, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// allowLock raises this process's own limit, which a child inherits.
func allowLock(need bytesize.Size) error {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l); err != nil {
		return os.NewSyscallError("getrlimit", err)
	}
	if l.Cur >= uint64(need) {
		return nil
	}
	was := l.Max
	l = unix.Rlimit{Cur: uint64(need), Max: max(l.Max, uint64(need))}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &l); err != nil {
		return &fault.Error{
			Kind: fault.Host, Op: fmt.Sprintf("let QEMU pin %v of memory", need), Fix: fault.FixMemlock,
			Err: fmt.Errorf("the limit is %v (RLIMIT_MEMLOCK): %w", bytesize.Size(was), err),
		}
	}
	return nil
}
