package main

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/swtee/tcg"
	"github.com/vmlatch/vmlatch/firmware/swtee/twin"
	"github.com/vmlatch/vmlatch/firmware/swtee/under"
	"github.com/vmlatch/vmlatch/launcher/host"
)

// Values of --accel.
const (
	accelAuto  = "auto"
	accelUnder = "under"
	accelTCG   = "tcg"
	accelTwin  = "twin"
)

// choice is how QEMU runs.
type choice struct {
	accel   string
	fakeKVM bool
	why     string
}

func (c choice) what() string {
	switch {
	case c.accel == accelTwin:
		return "QEMU's own code launches the guest on a fake KVM, and a second QEMU runs it under TCG"
	case c.accel == accelTCG:
		return "QEMU runs under TCG and boots the guest"
	case c.fakeKVM:
		return "QEMU's own code runs on a fake KVM, the guest does not execute"
	}
	return "QEMU's own code runs on KVM, the guest executes unencrypted"
}

// hostKVM is what the choice depends on.
type hostKVM struct {
	opens bool   // /dev/kvm can be opened
	runs  bool   // and can run a guest's firmware
	why   string // not
}

func thisHost() hostKVM {
	k := hostKVM{opens: unix.Access("/dev/kvm", unix.R_OK|unix.W_OK) == nil}
	k.runs, k.why = host.KVM()
	return k
}

// choose decides how to run a command line.
func choose(accel string, fakeKVM bool, argv []string, kvm hostKVM) (choice, error) {
	if fakeKVM && (accel == accelTCG || accel == accelTwin) {
		return choice{}, cli.Usagef("--fake-kvm and --accel %s exclude each other", accel)
	}
	switch accel {
	case accelTCG, accelTwin:
		return choice{accel, false, "as asked"}, nil
	case accelAuto, accelUnder:
	default:
		return choice{}, cli.Choice("accel", "accelerator", accel, []string{accelAuto, accelUnder, accelTwin, accelTCG})
	}
	if only := tcg.NeedsTCG(argv); only != "" {
		if fakeKVM || accel == accelUnder {
			return choice{}, cli.Usagef("%s is emulated under TCG only: leave out --accel under and --fake-kvm", only)
		}
		return choice{accelTCG, false, only + " is emulated there"}, nil
	}
	switch {
	case fakeKVM:
		return choice{accelUnder, true, "as asked"}, nil
	case accel == accelUnder && !kvm.opens:
		return choice{}, cli.WithHint(fmt.Errorf("--accel under: %s", kvm.why), "--fake-kvm works without KVM")
	case accel == accelUnder:
		return choice{accelUnder, false, "as asked"}, nil
	case kvm.runs:
		return choice{accelUnder, false, "KVM can run the guest"}, nil
	}
	if under.Confidential(argv) {
		if cannot := twin.Cannot(argv); cannot != "" {
			return choice{accelUnder, true, fmt.Sprintf("%s does not boot by two QEMUs, and %s", cannot, kvm.why)}, nil
		}
		return choice{accelTwin, false, kvm.why}, nil
	}
	return choice{accelTCG, false, kvm.why}, nil
}
