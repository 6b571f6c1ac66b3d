package plan

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/launcher/cgroup"
	"github.com/vmlatch/vmlatch/launcher/confine"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/spec"
)

// Facts are what a plan depends on besides the guest.
type Facts struct {
	QEMU           string                      // path of the program
	QEMUFrom       string                      // where that came from
	Info           *host.QEMU                  // what it can do; nil for plain VMs, for which it does not count
	Emulator       []string                    // program and options to put before QEMU; nil for real hardware
	Confine        *Confinement                // what QEMU is confined with; nil if it is not
	LogKeeper      *LogKeeper                  // what keeps the logs; nil if QEMU writes to them
	VirtioFSD      string                      // program that serves directories; "" unless the spec uses it
	VirtioFSDLacks []string                    // capabilities that it needs, and this process cannot give it
	Passt          string                      // program that carries networks; "" unless the spec uses it
	NameServers    []netip.Addr                // that guests of passt are told of; nil for those of the host
	NoNames        string                      // says why they cannot ask any; "" if they can
	BridgeHelper   string                      // makes interfaces on a bridge, where this process may not; "" for none
	VHostNet       bool                        // this user may have the kernel carry the frames of interfaces
	PCI            map[string]*host.PCIDevice  // of this host, that the spec names
	OpensVFIO      map[string]bool             // which of them this user can give to a guest
	Processors     []int                       // of this host; nil unless the spec names some
	Nodes          []int                       // of this host that have memory; nil unless the spec names some
	Groups         *cgroup.Place               // where QEMU's control group can be made; nil for nowhere
	NoGroups       string                      // says why
	GroupsEnd      bool                        // they end with the user's session
	MachineID      string                      // of this host: addresses follow from it
	Addresses      map[string]net.HardwareAddr // of the host's interfaces that the spec names
	TPM            *TPMProgram                 // what emulates a TPM; nil for guests without one
	Host           *host.Report                // what the machine can do
	Slots          map[string]int              // limits of pools, by the operator
	SlotDir        string                      // where leases lie
	MaxLock        uint64                      // bytes of memory that QEMU may be allowed to pin
	Demands        []*spec.Demands             // of the disk images
	IGVM           bool                        // the spec's firmware is an IGVM file
	Image          *Image                      // what the spec's firmware can do, where that decides
	HugePages      map[uint64]uint64           // free ones by size in bytes; nil unless the spec uses them
	OwnerFiles     map[string][]byte           // content of small files that the guest's owner made, by key
	Descriptors    []ovmf.Descriptor           // firmware of this machine, preferred first
}

// TPMProgram is what emulates a TPM.
type TPMProgram struct {
	Program string // swtpm
	// Files are what it needs to start; nil if that is not known, as of a script.
	Files  []confine.File
	Keeper string // the program that understands [KeepTPM]
	// Firmware says why the guest's firmware measures nothing into a TPM; "" if it does.
	Firmware string
	// Encrypted is whether the state that is there is encrypted; nil if there is none.
	Encrypted *bool
}

// Image is what a firmware image has for confidential guests.
type Image struct {
	IGVM                 bool
	HashArea, SecretArea bool
	PlatformKey          bool // its Secure Boot is on, with keys of its own
	Size                 int  // bytes
	// Odd says why the file can be no firmware image; "" if it may be one.
	Odd string
	// Reach is, by technology, where the memory ends that the image's metadata names below
	// the image itself: a guest must have as much.
	Reach map[string]uint64
	// Lacks is what each technology needs and the image does not have; "" for nothing.
	Lacks map[string]string
}

// Emulated reports whether the platform is an emulated one.
func (f *Facts) Emulated() bool { return f.Emulator != nil }

// Object is a QEMU object or device type, with the QEMU versions that brought it and
// its properties.
type Object struct {
	Type       string
	Since      string
	Properties map[string]string // version by name, where it is later than Since
}

// Needs is an error unless this QEMU has the object and the properties. want says what
// for, in the infinitive.
func (f *Facts) Needs(want string, o Object, properties ...string) error {
	if f.Info == nil || !f.Info.HasObject(o.Type) {
		return f.lacks(want, o.Since, "object "+o.Type)
	}
	for _, p := range properties {
		if !f.Info.HasObject(o.Type, p) {
			return f.Lacks(want, o, p)
		}
	}
	return nil
}

// Lacks is the error of a QEMU whose object lacks a property.
func (f *Facts) Lacks(want string, o Object, property string) error {
	return f.lacks(want, o.Properties[property], "property "+property+" of "+o.Type)
}

func (f *Facts) lacks(want, since, what string) error {
	version, fix := "of unknown version", "no released QEMU has it"
	if f.Info != nil {
		version = f.Info.Version
	}
	if since != "" {
		fix = "install QEMU " + since + " or newer, or name one with qemu = in the spec; " +
			"\"make qemu-matrix\" in the sources of vmlatch fetches some"
		what += " (QEMU " + since + " or newer has it)"
	}
	return &fault.Error{
		Kind: fault.Host, Op: want, Err: fmt.Errorf("QEMU %s (%s) has no %s", version, f.QEMU, what),
		Fix: fix, Check: fault.QEMUObject,
	}
}

// Resets reports whether the guest may be reset: its QEMU relaunches it then, which
// must not bypass the latch of an owner.
func (f *Facts) Resets(g *Guest, t Traits) bool {
	return f.Info != nil && f.Info.HasFeature(t.Object.Type, "confidential-guest-reset") &&
		g.Latch.Until != UntilSecret
}
