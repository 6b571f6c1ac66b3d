package launcher_test

import (
	"context"
	"fmt"
	"log"

	"github.com/vmlatch/vmlatch/launcher"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// A program that starts a VM, has it verified by its owner, lets it run, and waits for
// its end.
func Example() {
	ctx := context.Background()
	m, err := launcher.Launch(ctx, "guest.toml", launcher.Config{}, launcher.StartOptions{})
	if err != nil {
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
	facts := &plan.Facts{
		QEMU: "/usr/bin/qemu-system-x86_64",
		Host: &host.Report{KVM: host.Technology{Usable: host.Yes}},
	}
	p, err := launcher.NewPlan(spec, facts, rundir.Root{Run: "/run/vmlatch", State: "/var/lib/vmlatch"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(p.Technology, p.Argv[0], len(p.FDs), "descriptors")
	// Output: none /usr/bin/qemu-system-x86_64 7 descriptors
}
