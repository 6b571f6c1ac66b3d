package launcher

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/sev"
)

// Spec is what a user wrote about one VM.
type Spec struct {
	Name    string `toml:"name" json:"name"`
	Memory  Size   `toml:"memory" json:"memory"`
	CPUs    int    `toml:"cpus" json:"cpus"`
	Accel   string `toml:"accel" json:"accel"`     // auto, kvm, tcg
	Machine string `toml:"machine" json:"machine"` // QEMU machine type
	CPU     string `toml:"cpu" json:"cpu"`         // QEMU CPU model; "" is chosen
	QEMU    string `toml:"qemu" json:"qemu,omitempty"`

	Firmware     FirmwareSpec     `toml:"firmware" json:"firmware"`
	Kernel       KernelSpec       `toml:"kernel" json:"kernel"`
	Confidential ConfidentialSpec `toml:"confidential" json:"confidential"`
	Latch        LatchSpec        `toml:"latch" json:"latch"`
	Backend      BackendSpec      `toml:"memory-backend" json:"memory-backend"`
	Disks        []DiskSpec       `toml:"disk" json:"disk,omitempty"`
	Networks     []NetworkSpec    `toml:"network" json:"network,omitempty"`
	Devices      []map[string]any `toml:"device" json:"device,omitempty"` // -device, as it is
	Objects      []map[string]any `toml:"object" json:"object,omitempty"` // -object, as it is

	file  string
	dir   string
	set   map[string]bool // keys that the file has
	tech  string          // the technology that was chosen; "" while several could be
	asked []string        // the technologies to choose from, preferred first

	raw     *Spec // without what its only technology filled in
	pending error // what is wrong, unless a disk image asks for another technology
}

// FirmwareSpec names the firmware by file, or by what it must be able to do.
type FirmwareSpec struct {
	Type     string   `toml:"type" json:"type,omitempty"` // bios, uefi; "" is bios unless the rest says uefi
	Image    string   `toml:"image" json:"image,omitempty"`
	Vars     string   `toml:"vars" json:"vars,omitempty"`
	Features []string `toml:"features" json:"features,omitempty"`
}

// lookup says whether the firmware has to be found through QEMU's descriptors.
func (f FirmwareSpec) lookup() bool {
	return f.Image == "" && (f.Type == FirmwareUEFI || len(f.Features) > 0)
}

// KernelSpec is a kernel that QEMU hands to the firmware.
type KernelSpec struct {
	Image   string `toml:"image" json:"image,omitempty"`
	Initrd  string `toml:"initrd" json:"initrd,omitempty"`
	Cmdline string `toml:"cmdline" json:"cmdline,omitempty"`
}

// ConfidentialSpec asks for memory encryption.
type ConfidentialSpec struct {
	// Technology is a name, a list of names, or "any-confidential".
	Technology   any      `toml:"technology" json:"technology"`
	Policy       []string `toml:"policy" json:"policy,omitempty"`
	KernelHashes *bool    `toml:"kernel-hashes" json:"kernel-hashes,omitempty"`
	OwnerCert    string   `toml:"owner-cert" json:"owner-cert,omitempty"`
	Session      string   `toml:"session" json:"session,omitempty"`
	VMSA         string   `toml:"vmsa" json:"vmsa,omitempty"`           // SEV, SEV-ES: init2 or legacy; "" is chosen
	IDBlock      string   `toml:"id-block" json:"id-block,omitempty"`   // SEV-SNP: file of base64
	IDAuth       string   `toml:"id-auth" json:"id-auth,omitempty"`     // SEV-SNP: file of base64
	HostData     string   `toml:"host-data" json:"host-data,omitempty"` // SEV-SNP: 32 bytes in hex

	MRConfigID    string `toml:"mrconfigid" json:"mrconfigid,omitempty"`       // TDX: 48 bytes in hex, as the next two
	MROwner       string `toml:"mrowner" json:"mrowner,omitempty"`             //
	MROwnerConfig string `toml:"mrownerconfig" json:"mrownerconfig,omitempty"` //
	QuoteSocket   string `toml:"quote-socket" json:"quote-socket,omitempty"`   // TDX: unix socket of the quote service

	MKTME MKTMESpec `toml:"mktme" json:"mktme"`

	// What differs between technologies, where there are several to choose from.
	ForSEV   OnlyFor `toml:"sev" json:"sev"`
	ForSEVES OnlyFor `toml:"sev-es" json:"sev-es"`
	ForSNP   OnlyFor `toml:"sev-snp" json:"sev-snp"`
	ForTDX   OnlyFor `toml:"tdx" json:"tdx"`
}

// OnlyFor are values that count when its technology is chosen.
type OnlyFor struct {
	Policy []string `toml:"policy" json:"policy,omitempty"`
	CPU    string   `toml:"cpu" json:"cpu,omitempty"`
	Until  string   `toml:"until" json:"until,omitempty"`
}

func (o *OnlyFor) empty() bool { return len(o.Policy) == 0 && o.CPU == "" && o.Until == "" }

// MKTMESpec names the object of a patched QEMU that takes a key handle. No
// released QEMU has one.
type MKTMESpec struct {
	Object         string `toml:"object" json:"object,omitempty"`
	HandleProperty string `toml:"handle-property" json:"handle-property,omitempty"`
	Algorithm      string `toml:"algorithm" json:"algorithm,omitempty"`
}

// BackendSpec says where the guest's memory comes from; nothing set leaves it to
// QEMU and the technology.
type BackendSpec struct {
	Type      string `toml:"type" json:"type,omitempty"` // ram or memfd
	Share     *bool  `toml:"share" json:"share,omitempty"`
	Prealloc  *bool  `toml:"prealloc" json:"prealloc,omitempty"`
	Reserve   *bool  `toml:"reserve" json:"reserve,omitempty"`
	HugePages Size   `toml:"hugepages" json:"hugepages,omitempty"` // page size; memfd only
}

// LatchSpec says what must happen before the guest may run.
type LatchSpec struct {
	Until string `toml:"until" json:"until"`
	// Owner is a command that reads the measurement from its standard input and
	// writes the secret packet to its standard output.
	Owner   []string `toml:"owner" json:"owner,omitempty"`
	Timeout Duration `toml:"timeout" json:"timeout"`
}

// DiskSpec is one virtio disk.
type DiskSpec struct {
	Image    string `toml:"image" json:"image"`
	Format   string `toml:"format" json:"format"` // raw, qcow2; "" by the file's name
	ReadOnly bool   `toml:"read-only" json:"read-only,omitempty"`
}

// NetworkSpec is one virtio network interface.
type NetworkSpec struct {
	Mode    string   `toml:"mode" json:"mode"`                 // user
	Forward []string `toml:"forward" json:"forward,omitempty"` // tcp:127.0.0.1:2222:22
	MAC     string   `toml:"mac" json:"mac,omitempty"`
}

// Duration is a time.Duration written as 30s or 5m.
type Duration time.Duration

// UnmarshalText is time.ParseDuration.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err == nil && v <= 0 {
		err = fmt.Errorf("duration %q: must be positive", b)
	}
	*d = Duration(v)
	return err
}

// MarshalText writes the form that UnmarshalText reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Types of firmware.
const (
	FirmwareBIOS = "bios"
	FirmwareUEFI = "uefi"
)

// What a latch can wait for.
const (
	UntilSecret  = "secret"   // an accepted secret packet
	UntilIDBlock = "id-block" // the platform compares the launch with a signed ID block
	UntilNothing = "nothing"  // explicit: the launch is not verified
	UntilNone    = "none"     // plain VMs have no latch
)

const maxSpec = 1 << 20

// LoadSpec reads a spec file. Relative paths in it are relative to it.
func LoadSpec(file string) (*Spec, error) { return loadSpec(file, ParseSpec) }

func loadSpec(file string, parse func(b []byte, file, dir string) (*Spec, error)) (*Spec, error) {
	f, err := openSettings(file)
	if err != nil {
		return nil, &SpecError{File: file, Msg: unwrapPath(err)}
	}
	defer f.Close()
	b, err := readAtMost(f, maxSpec)
	if err != nil {
		return nil, &SpecError{File: file, Msg: unwrapPath(err)}
	}
	abs, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	return parse(b, file, filepath.Dir(abs))
}

// openSettings opens a file that somebody wrote, and does not wait for who writes a
// pipe: a VM can be started again from its file.
func openSettings(file string) (*os.File, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		_ = f.Close()
		if err == nil {
			err = &os.PathError{Op: "open", Path: file, Err: errors.New("is no regular file")}
		}
		return nil, err
	}
	return f, nil
}

// ParseSpec reads a spec. file names it in errors; dir is what relative paths
// start from. Defaults are filled in; unknown keys are errors, as is what the
// checks refuse that need no host.
func ParseSpec(b []byte, file, dir string) (*Spec, error) {
	s, err := readSpec(b, file, dir)
	if err != nil {
		return nil, err
	}
	return s, s.settle()
}

// readSpec is ParseSpec without a look at what depends on the technology.
func readSpec(b []byte, file, dir string) (*Spec, error) {
	s := &Spec{
		CPUs: 1, Memory: 512 << 20, Accel: "auto", Machine: "q35", file: file, dir: dir,
		Confidential: ConfidentialSpec{Technology: TechnologyNone},
		Latch:        LatchSpec{Timeout: Duration(5 * time.Minute)},
	}
	tree, err := decodeTOML(b, file, s)
	if err != nil {
		return nil, err
	}
	s.set = map[string]bool{}
	collectKeys(s.set, "", tree)
	if err := s.readTechnologies(); err != nil {
		return nil, err
	}
	if err := s.fill(); err != nil {
		return nil, err
	}
	return s, s.validate()
}

// fill sets the defaults that depend on other values, and makes paths absolute.
func (s *Spec) fill() error {
	if s.Name == "" {
		s.Name = strings.TrimSuffix(filepath.Base(s.file), filepath.Ext(s.file))
	}
	for key, p := range map[string]*string{
		"owner-cert": &s.Confidential.OwnerCert, "session": &s.Confidential.Session,
		"id-block": &s.Confidential.IDBlock, "id-auth": &s.Confidential.IDAuth,
	} {
		var err error
		if *p, err = CredentialFile(*p); err != nil {
			return &SpecError{File: s.file, Key: "confidential." + key, Msg: err.Error(), Fix: "the unit must have LoadCredential=NAME:FILE, and start vmlatch; elsewhere name the file itself"}
		}
	}
	for _, p := range []*string{
		&s.Firmware.Image, &s.Firmware.Vars, &s.Kernel.Image, &s.Kernel.Initrd,
		&s.Confidential.OwnerCert, &s.Confidential.Session, &s.Confidential.IDBlock, &s.Confidential.IDAuth, &s.Confidential.QuoteSocket,
	} {
		*p = s.abs(*p)
	}
	if strings.ContainsRune(s.QEMU, '/') { // else it is looked for in PATH
		s.QEMU = s.abs(s.QEMU)
	}
	for i := range s.Disks {
		d := &s.Disks[i]
		d.Image = s.abs(d.Image)
		if d.Format == "" {
			d.Format = "raw"
			if strings.HasSuffix(d.Image, ".qcow2") {
				d.Format = "qcow2"
			}
		}
	}
	return nil
}

// CredentialPrefix begins the name of a file that the service manager hands over
// (systemd.exec(5), LoadCredential=).
const CredentialPrefix = "credential:"

// CredentialFile is the path behind credential:NAME; another text stays as it is.
func CredentialFile(text string) (string, error) {
	name, ok := strings.CutPrefix(text, CredentialPrefix)
	if !ok {
		return text, nil
	}
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return "", fmt.Errorf("%q: no credential can have this name", text)
	case !filepath.IsAbs(dir):
		return "", fmt.Errorf("%s: no service manager has given this process credentials", text)
	}
	return filepath.Join(dir, name), nil
}

// fillFor sets the defaults that depend on the technology.
func (s *Spec) fillFor(technology string) {
	s.tech = technology
	if only := s.onlyFor(technology); only != nil {
		if len(only.Policy) > 0 {
			s.Confidential.Policy = only.Policy
		}
		if only.CPU != "" {
			s.CPU = only.CPU
		}
		if only.Until != "" {
			s.Latch.Until = only.Until
		}
	}
	if s.Latch.Until == "" {
		switch {
		case technology == TechnologyNone:
			s.Latch.Until = UntilNone
		case technology == TechnologySNP && s.Confidential.IDBlock != "":
			s.Latch.Until = UntilIDBlock
		case (technology == TechnologySEV || technology == TechnologySEVES) && s.Confidential.Session != "":
			s.Latch.Until = UntilSecret
		}
	}
	if s.KernelHashes() && s.Confidential.KernelHashes == nil {
		on := true
		s.Confidential.KernelHashes = &on
	}
}

func (s *Spec) onlyFor(technology string) *OnlyFor {
	c := &s.Confidential
	return map[string]*OnlyFor{TechnologySEV: &c.ForSEV, TechnologySEVES: &c.ForSEVES, TechnologySNP: &c.ForSNP, TechnologyTDX: &c.ForTDX}[technology]
}

func (s *Spec) abs(p string) string {
	if p == "" || filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(s.dir, p)
}

// KernelHashes says whether the kernel is measured: by default when there is
// one and the guest is confidential.
func (s *Spec) KernelHashes() bool {
	if s.Confidential.KernelHashes != nil {
		return *s.Confidential.KernelHashes
	}
	t, _ := technologyByName(s.tech)
	return s.Kernel.Image != "" && t.kernelHashes
}

// Technology is what was asked for, or chosen of several; "" before the choice.
func (s *Spec) Technology() string { return s.tech }

// Several says whether there was a choice between technologies.
func (s *Spec) Several() bool { return len(s.asked) > 1 }

// Policy is the guest policy of a SEV or SEV-ES guest.
func (s *Spec) Policy() (p sev.Policy, err error) {
	p = sev.PolicyNoDebug | sev.PolicyNoKeySharing
	if len(s.Confidential.Policy) > 0 {
		if p, err = sev.ParsePolicy(strings.Join(s.Confidential.Policy, ",")); err != nil {
			return 0, err
		}
	}
	if s.tech == TechnologySEVES {
		p |= sev.PolicyES
	}
	return p, nil
}

// From says where a key's value came from.
func (s *Spec) From(key string) string {
	if s.set[key] {
		return "spec"
	}
	return "default"
}

// path is the spec's file, wherever its reader stands; "" if it was no file.
func (s *Spec) path() string {
	if s.file == "" {
		return ""
	}
	return filepath.Join(s.dir, filepath.Base(s.file))
}

func (s *Spec) errorf(key, format string, args ...any) error {
	return &SpecError{File: s.file, Key: key, Msg: fmt.Sprintf(format, args...)}
}
