package main

import (
	"context"

	"github.com/vmlatch/vmlatch/launcher"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// mayBe is the state of a VM whose next step was begun and not recorded; "" if there is no
// such step, or none that matters.
func mayBe(e *rundir.Entry) launcher.State {
	if e.Staged == nil || e.Record == nil || e.Staged.State == e.Record.State {
		return ""
	}
	return map[launcher.State]launcher.State{
		launcher.Running: launcher.Releasing, launcher.Provisioned: launcher.Provisioning,
	}[launcher.State(e.Staged.State)]
}

// afterRelease asks QEMU whether a guest runs whose release was begun by a command that is
// gone.
func afterRelease(ctx context.Context, root rundir.Root, e *rundir.Entry) *rundir.Entry {
	if mayBe(e) != launcher.Releasing || e.LaunchHeld {
		return e
	}
	m, err := launcher.Attach(ctx, root, e.Name)
	if err != nil {
		return e
	}
	m.Close()
	if now, err := root.Peek(e.Name); err == nil && now != nil {
		return now
	}
	return e
}

// cpuState is the recorded state of a VM, but for what the users of its monitor have done:
// stopped a running guest, or let one run that is held; and what is wrong with it.
func cpuState(ctx context.Context, root rundir.Root, e *rundir.Entry) (state string, trouble []string) {
	recorded := launcher.State(e.Record.State)
	log, err := openEvents(ctx, root, e.Name)
	if err != nil {
		return string(recorded), nil
	}
	defer log.Close()
	events := launcher.LastEvents(log)
	trouble = launcher.Trouble(events, e.Record)
	switch running, known := launcher.CPUs(events); {
	case known && !running && recorded == launcher.Running:
		return string(launcher.Paused), trouble
	case known && running && recorded != launcher.Stopping && recorded != launcher.Running:
		return string(launcher.Running), trouble
	}
	if recorded == launcher.Running && e.Record.Latch.Proof == launcher.ProofWaits {
		return string(launcher.Proving), trouble
	}
	return string(recorded), trouble
}
