package launcher_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/vmlatch/vmlatch/launcher"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// A program that starts a VM, holds it, lets it run, and waits for its end.
func Example() {
	ctx := context.Background()
	spec, err := launcher.LoadSpec("guest.toml")
	if err != nil {
		log.Fatal(err)
	}
	config, err := launcher.LoadHostConfig(launcher.HostConfigFile(), false)
	if err != nil {
		log.Fatal(err)
	}
	facts, err := launcher.GatherFacts(ctx, config, spec, false)
	if err != nil {
		log.Fatal(err)
	}
	plan, err := launcher.NewPlan(spec, facts, config.Root())
	if err != nil {
		log.Fatal(err)
	}
	m, err := launcher.Start(ctx, plan, launcher.StartOptions{})
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()
	measurement, err := m.Measure(ctx) // for the guest's owner, who answers with a packet
	if err != nil {
		log.Fatal(err)
	}
	packet, err := m.AskOwner(ctx, spec, measurement, os.Stderr)
	if err != nil {
		log.Fatal(err)
	}
	if err := m.Inject(ctx, packet); err != nil {
		log.Fatal(err)
	}
	if err := m.Release(ctx); err != nil {
		log.Fatal(err)
	}
	exit, err := m.Wait(ctx)
	fmt.Println(exit.Reason, err)
}

// A plan is a value: it needs neither QEMU nor any of the files that it names.
func ExampleNewPlan() {
	spec, err := launcher.ParseSpec([]byte(`
		name   = "small"
		memory = "64MiB"
	`), "small.toml", "/specs")
	if err != nil {
		log.Fatal(err)
	}
	facts := launcher.Facts{QEMU: "/usr/bin/qemu-system-x86_64", Host: &host.Report{KVM: host.Technology{Usable: host.Yes}}}
	plan, err := launcher.NewPlan(spec, facts, rundir.Root{Run: "/run/vmlatch", State: "/var/lib/vmlatch"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(plan.Technology, plan.Argv[0], len(plan.FDs), "descriptors")
	// Output: none /usr/bin/qemu-system-x86_64 5 descriptors
}
