package plan

// Technology is what a plan needs to know about how its guest is protected.
type Technology interface {
	Traits() Traits
	// Build adds the technology's QEMU object.
	Build(*Builder) error
}

// Traits are what is constant about a technology.
type Traits struct {
	Name    string
	Object  Object   // of QEMU; of no type for plain VMs and named adapters
	Feature string   // what firmware must be able to do (QEMU, firmware.json, FirmwareFeature)
	Vendor  string   // of the processors that have it, for people
	Pool    string   // whose encryption slots it takes where no hardware tells
	Sharing []string // the technologies that share the pool

	Confidential  bool     // memory is encrypted
	Attested      bool     // the platform can prove what was loaded
	Measurable    bool     // the platform shows a measurement while the guest is paused
	KernelHashes  bool     // a kernel given to QEMU can be measured
	Models        []string // CPU model where none is named, preferred first; none leaves it to the accelerator
	ModelMeasured bool     // the registers that a CPU starts with are measured
	Private       bool     // private memory comes from guest_memfd: nothing is pinned, and SMM cannot be
	Registers     bool     // register state is protected
	Pinned        bool     // QEMU pins the guest's memory
	KernelLog     bool     // a check of it, or the number of its slots, needs the kernel's log
	Device        string   // of the host that QEMU opens, besides KVM's; "" for none
	IRQChip       string   // what may be asked for besides QEMU's choice; "" for nothing

	Covers     []string // what is measured besides the firmware image
	KernelBy   string   // what else measures a kernel
	Unmeasured string   // why nothing is measured
}
