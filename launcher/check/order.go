package check

import "github.com/vmlatch/vmlatch/launcher/fault"

// Ids of checks that other rooms name.
const (
	FreeSlots       = "free-slots"
	FreeHugePages   = "hugepages-free"
	MemoryAvailable = "memory-available"
	NameFree        = "name-free"
	FilesReadable   = fault.FilesReadable
	Technology      = fault.Technology // of the choice between several; not in the table
)

// order is the order of the table, by id: what is asked first is said first, and the
// JSON of "vmlatch check" does not depend on which room a check stands in.
var order = [...]string{
	"machine-q35", "no-variable-store", "kernel-hashes-kernel", "kernel-measured", "sev-policy-debug",
	"sev-policy-key-sharing", "sev-policy-send", "session-pair", "id-block-pair", "snp-policy-debug",
	"snp-policy-migration",
	"cpu-model-named", "cpu-model-versioned", "tdx-attributes", "tdx-cpu-host", "tdx-hugepages",
	"private-memory-backend", "private-memory-twice", "virtio-dma", "extra-objects", "no-screen", "no-agent",
	"no-hotplug", "no-loader",
	"no-balloon", "no-viommu", "vfio-iommufd", "pci-unattested", "vtpm-evidence", "tpm-tdx-rtmr2",
	"tpm-device-twice", "tpm-ephemeral-disk", "secure-boot-direct", "tdx-boot-disk", "option-roms",
	"share-private", "share-visible", "config-unmeasured", "config-found", "config-disk", "disk-discard", "disk-unsafe",
	"bounce-buffers", "limits-memory",
	"cmdline-characters", "broker-key-measured", "console-closed", "broker-source", "broker-trust",
	"something-boots",
	fault.TPMProgram, fault.TPMState, "tpm-firmware",
	"pci-there", "pci-iommu", "pci-driver", "pci-group", "pci-rights", "pci-modern",
	"limits-possible", "limits-session", "pin-processors",
	"technology-usable", "qemu-object", "cpu-model-known", "vcpu-limit", "machine-known", "device-known",
	"free-slots", "memory-lock",
	"memory-available", "memory-nodes", "hugepages-free", "es-on-snp-host", "vmsa-features", "snp-policy-smt",
	"snp-policy-support", "snp-iommu", "snp-firmware", "snp-kernel", "ciphertext-hiding", "tdx-kernel",
	"tdx-module", "tdx-quote-service", "machine-pinned", "name-free", "files-readable", "owner-command",
	"directories", "firmware-stateless", "firmware-knows", "kernel-hashes-area", "secret-area", "secure-boot-kernel",
	"qemu-confined", "network-loopback", "network-names", "igvm-alone",
	"session-files", "cbitpos", "reduced-phys-bits", "sev-policy-es", "vm-type-explicit", "id-block-size",
	"smm-off", "irqchip", "tdx-machine", "private-memory", "memory-not-locked", "machine-defaults", "no-reboot",
	"paused-start", "fixed-size", "one-monitor", "disks-private", PortsFree, "kernel-measurable", "cmdline-whole",
	"cmdline-length", "initrd-fits", "firmware-image", "firmware-memory", "vars-image", "disk-image",
	DisksFree, "share-there", "share-rights", "config-size", "igvm-vcpus",
}
