// Package launcher starts virtual machines and holds them until what was loaded
// into them has been proven right. It is the library behind vmlatch.
//
// The way of the data:
//
//	file --ParseSpec--> Spec --NewPlan--> Plan --Start--> Machine (paused)
//	    Machine.Measure --> (owner) --> Machine.Inject --> Machine.Release --> Machine.Wait
//
// A [Spec] is what the user wrote. A [Plan] is a pure value: the same spec and
// the same [Facts] about the host always give the same command line. A
// [Machine] owns the process and knows which step may follow which: [Machine.Release]
// is refused while the latch is closed.
//
// A spec may name several technologies; [NewPlan] takes the first that host, QEMU
// and disk images allow. [Start] makes every check of the table ([Checks]) before
// it does anything; [CheckPlan] and [CheckSpec] make them alone. A start takes an
// encryption slot (package slot), and a key where the technology has one (package
// keyring): QEMU inherits both, and they are free when it has gone.
//
// Start with [LoadSpec], [NewPlan] and [Start]; [Attach] finds a machine that
// another process started.
package launcher
