package fault

// Fixes that more than one room gives. Each text stands once.
const (
	FixAmdSev = "use an AmdSev build of OVMF: OVMF.amdsev.fd (Debian sid: package ovmf-amdsev;" +
		" Fedora: edk2-ovmf)"
	FixSwtpm  = "install it (Debian: swtpm)"
	FixOVMF   = "use a build of OVMF that has it"
	FixRecord = `"vmlatch host --record DIR" makes a record`
	FixPaths  = "paths in a spec start from the spec's own directory"
	FixRead   = "let the user who runs vmlatch read it, and enter the directories above it"
	FixSlots  = "stop another confidential VM; the pool's size is in vmlatch host," +
		" an operator's limit in [slots] of host.toml"
	FixSession   = "copy the files of latchkey session again, unchanged"
	FixImageUsed = "stop the other VM, or give this one an image of its own"
	FixMemlock   = "raise the limit: LimitMEMLOCK= of the unit, memlock in limits.conf, or ulimit -l"
	FixOpenFiles = "raise the limit of open files: LimitNOFILE= of the unit, nofile in limits.conf, or ulimit -n"
)
