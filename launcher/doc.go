// Package launcher starts virtual machines and holds them until what was loaded into
// them has been verified. It is the library behind vmlatch, and the front door to the
// rooms below it:
//
//	spec       what users wrote: specs, host.toml, demands of disk images
//	tee        the technologies, one file each
//	plan       what a start executes, as a value; one file per kind of device
//	check      sanity checks of spec, host and plan
//	advice     what an error means, and what to do about it
//	fault      the one error type
//	host       what a machine and its QEMU can do
//	slot       leases on encryption slots
//	rundir     a VM's directories: locks, sockets, the record; who is alive
//
// The way of the data:
//
//	file --LoadSpec--> Spec --NewPlan--> Plan --Plan.Start--> Machine (paused)
//	    Machine.Measure --> (owner) --> Machine.Inject --> Machine.Release --> Machine.Wait
//
// A spec is what the user wrote; it may name several technologies, of which [NewPlan]
// takes the first that host, QEMU and disk images allow. A [Plan] is a value: the same
// spec and the same facts about the host always give the same command line. A
// [Machine] owns the process and knows which step may follow which: [Machine.Release]
// is refused while the latch is closed.
//
// [Plan.Start] makes every check before it does anything. A start takes an encryption
// slot, and a key where the technology has one: QEMU inherits both, and they are free
// when it has gone.
//
// Start with [Launch], which goes the whole way; [Attach] finds a machine that another
// process started.
package launcher
