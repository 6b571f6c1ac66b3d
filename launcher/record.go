package launcher

import (
	"time"

	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

func (s *starter) newRecord() *rundir.Record {
	g := s.plan.Guest
	return &rundir.Record{
		Schema: rundir.RecordSchema, Name: s.plan.Name, Technology: s.plan.Technology, Emulated: s.plan.Emulated,
		State: string(Launching), Started: time.Now().UTC(), QEMU: s.plan.Argv[0],
		Origin: rundir.Origin{Spec: g.File.Where(), Hold: s.opt.Hold, Foreground: s.opt.Foreground, Unit: s.opt.Unit},
		Memory: g.Memory.String(), CPUs: g.CPUs, Argv: s.plan.Argv, Choices: s.plan.Choices,
		Latch: rundir.Latch{Until: g.Latch.Until, Open: g.Latch.Until != plan.UntilSecret},
		Disks: recordDisks(g.Disks), Networks: recordNetworks(g, s.plan.Facts),
		VSock: recordVSock(g, s.plan.Facts), TPM: recordTPM(&g.TPM),
		Helpers: map[string]*rundir.Identity{}, HelpersConfined: map[string]*rundir.Confinement{},
		Steps: s.steps, Unconfined: s.plan.Unconfined, Slot: recordSlot(s.plan.Slot),
	}
}

func recordSlot(s *plan.Slot) string {
	if s == nil {
		return ""
	}
	return s.Pool
}

func recordVSock(g *plan.Guest, f *plan.Facts) uint32 {
	if !g.VSock.On() {
		return 0
	}
	return g.VSock.Address(g, f)
}

func recordTPM(t *plan.TPM) *rundir.TPM {
	if !t.On() {
		return nil
	}
	return &rundir.TPM{Model: t.Model, State: t.State, Encrypted: t.Key != "", Trust: plan.TrustHost}
}

func recordDisks(disks plan.Disks) (out []rundir.Disk) {
	for _, d := range disks {
		device, _ := plan.DeviceNumber(d.Image) // else it is a file
		out = append(out, rundir.Disk{
			Image: d.Image, Format: d.Format, ReadOnly: d.ReadOnly, Bus: d.Bus, Ephemeral: d.Ephemeral, Device: device,
		})
	}
	return out
}

func recordNetworks(g *plan.Guest, f *plan.Facts) (out []rundir.Network) {
	for i, n := range g.Networks {
		out = append(out, rundir.Network{
			Mode: n.Mode, MAC: g.Address(f, i).String(), Forward: n.Forward, Bridge: n.Bridge, Interface: n.Interface,
			Link: n.Other(), Restricted: n.Restrict,
		})
	}
	return out
}
