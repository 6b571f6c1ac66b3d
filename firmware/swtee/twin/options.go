package twin

// side says which of the two QEMUs gets an option.
type side int

const (
	unknown side = iota
	both         // it is measured, or says how what is measured is made
	twinOnly
	refused
)

// sides are QEMU's options (QEMU, qemu-options.hx). Devices and what is behind them are the twin's
// alone: two processes cannot share an image, a socket or a port.
var sides = map[string]side{
	"machine": both, "M": both, "cpu": both, "smp": both, "m": both, "bios": both, "kernel": both, "initrd": both,
	"append": both, "global": both, "object": both, "accel": both, "enable-kvm": both, "L": both,
	"S": both, "nodefaults": both, "no-user-config": both, "drive": both, "blockdev": both, "name": twinOnly,

	"device": twinOnly, "chardev": twinOnly, "mon": twinOnly, "qmp": twinOnly, "monitor": twinOnly,
	"netdev": twinOnly, "net": twinOnly, "nic": twinOnly, "serial": twinOnly, "parallel": twinOnly,
	"debugcon": twinOnly, "display": twinOnly, "vga": twinOnly, "vnc": twinOnly, "spice": twinOnly, "k": twinOnly,
	"nographic": twinOnly, "usb": twinOnly, "usbdevice": twinOnly, "rtc": twinOnly, "boot": twinOnly,
	"uuid": twinOnly, "smbios": twinOnly, "acpitable": twinOnly, "fw_cfg": twinOnly, "no-reboot": twinOnly,
	"no-shutdown": twinOnly, "action": twinOnly, "sandbox": twinOnly, "pidfile": twinOnly, "msg": twinOnly,
	"trace": twinOnly, "D": twinOnly, "d": twinOnly, "overcommit": twinOnly, "numa": twinOnly, "add-fd": twinOnly,
	"watchdog-action": twinOnly, "mem-path": twinOnly, "mem-prealloc": twinOnly,
	"fsdev": twinOnly, "virtfs": twinOnly, "tpmdev": twinOnly, "option-rom": twinOnly, "pflash": both,
	"audio":    twinOnly,
	"audiodev": twinOnly, "cdrom": twinOnly, "hda": twinOnly, "hdb": twinOnly, "hdc": twinOnly, "hdd": twinOnly,
	"snapshot": twinOnly, "iscsi": twinOnly, "seed": twinOnly, "run-with": twinOnly, "no-fd-bootchk": twinOnly,
	"no-hpet": twinOnly, "no-acpi": twinOnly, "nouserconfig": both, "compat": twinOnly, "writeconfig": twinOnly,

	"daemonize": refused, "readconfig": refused, "runas": refused, "gdb": refused, "s": refused, "incoming": refused,
	"loadvm": refused, "preconfig": refused, "only-migratable": refused, "icount": refused, "plugin": refused,
	"shim": refused, "set": refused, "chroot": refused, "qtest": refused, "qtest-log": refused, "qmp-pretty": refused,
}

const noDebugger = "a debugger would start the guest before its launch is finished, " +
	"and see memory that is encrypted on silicon"

// why says why an option is refused.
var why = map[string]string{
	"daemonize":       "QEMU would outlive swtee, which answers for its platform; run swtee in the background instead",
	"readconfig":      "swtee looks for what is measured on the command line only; write it there",
	"runas":           "the kernel would let QEMU live on without swtee once it has changed its user",
	"gdb":             noDebugger,
	"s":               noDebugger,
	"incoming":        "a confidential guest cannot be migrated here",
	"loadvm":          "a confidential guest has no snapshots",
	"shim":            "the firmware would start it in the place of the kernel, and no measurement covers it",
	"set":             "write the property where the device or object stands",
	"chroot":          "the kernel would let QEMU live on without swtee",
	"preconfig":       "the launch would wait for commands that swtee does not know",
	"icount":          "it counts instructions that silicon does not run",
	"plugin":          "it sees what the guest executes, which silicon hides",
	"qmp-pretty":      "write -qmp, or -chardev and -mon",
	"only-migratable": "a confidential guest cannot be migrated",
	"qtest":           "swtee drives QEMU by it",
	"qtest-log":       "swtee drives QEMU by it",
}

// forbidden are QMP commands that show or change what silicon protects, or that go around the
// launch, and what is answered. The words are QEMU's where a confidential guest has some.
var forbidden = map[string]string{
	"getfd":                  "swtee: files cannot be passed over this monitor",
	"add-fd":                 "swtee: files cannot be passed over this monitor",
	"migrate":                "SEV: Migration is not implemented",
	"migrate-incoming":       "SEV: Migration is not implemented",
	"snapshot-save":          "SEV: Migration is not implemented",
	"snapshot-load":          "SEV: Migration is not implemented",
	"dump-guest-memory":      "swtee: it would show in clear what is encrypted on silicon",
	"memsave":                "swtee: it would show in clear what is encrypted on silicon",
	"pmemsave":               "swtee: it would show in clear what is encrypted on silicon",
	"gdbserver":              "swtee: a debugger would see what is encrypted on silicon",
	"set-action":             "swtee: a guest's reset ends its launch",
	"xen-save-devices-state": "swtee: it would show registers that are encrypted on silicon",
	"xen-load-devices-state": "SEV: Migration is not implemented",
}
