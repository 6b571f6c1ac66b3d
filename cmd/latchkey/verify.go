package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/exchange"
	"github.com/vmlatch/vmlatch/firmware/sev/launch"
)

func newVerify(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "verify", Usage: "check a launch measurement against your own files",
		Description: `Exit code 0: the platform measured exactly what you named, under your policy.
Exit code 4: it did not; the likely cause is named if it can be found.
What was verified is noted in the owner file, for "latchkey secret".

Example:

   latchkey verify --owner guest.owner --measurement measurement.json \
      --firmware OVMF.amdsev.fd --kernel vmlinuz --initrd initrd.img --cmdline console=ttyS0`,
		Flags: inputFlags(
			&urfave.StringFlag{Name: "owner", Usage: "your owner `FILE` of the session"},
			&urfave.StringFlag{Name: "measurement", Usage: "the host's `FILE` (vmlatch measure), - for standard input"},
			&urfave.BoolFlag{Name: "json", Usage: "print JSON"},
		),
		Action: func(c *urfave.Context) error {
			if _, err := cli.Args(c); err != nil {
				return err
			}
			if c.String("owner") == "" || c.String("measurement") == "" {
				return cli.Fail(cli.ExitUsage, errors.New("--owner and --measurement are needed"), `"latchkey verify --help" shows an example`)
			}
			return runVerify(c, s)
		},
	}
}

func runVerify(c *urfave.Context, s *cli.IO) error {
	m, err := readMeasurement(s, c.String("measurement"))
	if err != nil {
		return err
	}
	o, err := readOwner(c.String("owner"))
	if err != nil {
		return err
	}
	defer o.wipe()
	in, err := readInputs(c, string(o.technology()))
	if err != nil {
		return err
	}
	raw, err := in.digest()
	if err != nil {
		return err
	}
	digest := [32]byte(raw)
	verdict := check(o, m, in, digest)
	if verdict == nil {
		err = updateOwner(c.String("owner"), func(o *ownerFile) error {
			o.Verified = &verified{Digest: digest, Hex: hex.EncodeToString(digest[:])}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return reportVerdict(c, s, o, m, digest, verdict)
}

func readMeasurement(s *cli.IO, name string) (*exchange.Measurement, error) {
	b, err := s.ReadInput(name, exchange.MaxFile)
	if err != nil {
		return nil, cli.Fail(cli.ExitUsage, err)
	}
	m, err := exchange.ParseMeasurement(b)
	return m, cli.Fail(cli.ExitUsage, err)
}

// check decides. The policy and the keys are the owner's; of what the host
// sends only the firmware version enters, under the MAC.
func check(o *ownerFile, m *exchange.Measurement, in *inputs, digest [32]byte) error {
	blob, err := sev.ParseMeasurement(m.Measurement)
	if err != nil {
		return err
	}
	keys := o.keys()
	defer keys.Wipe()
	matches := func(p sev.Policy, d [32]byte) bool { return keys.Verifies(blob, m.Firmware, p, d) }
	if matches(o.Policy, digest) {
		return nil
	}
	return cli.Fail(cli.ExitRefused, errMismatch, causes(o, m, in, digest, matches)...)
}

// causes tries what could explain a measurement that does not verify. A change
// that makes the MAC match is proven; the host's claims only say what to try.
func causes(o *ownerFile, m *exchange.Measurement, in *inputs, digest [32]byte, matches func(sev.Policy, [32]byte) bool) []string {
	if m.Policy != o.Policy && matches(m.Policy, digest) {
		return []string{fmt.Sprintf("cause: the policy is %v instead of your session's %v", m.Policy, o.Policy)}
	}
	if in.Kernel != nil {
		if d, err := in.digestWith(nil); err == nil && matches(o.Policy, d) {
			return []string{"cause: the host did not have the kernel measured: kernel-hashes is off"}
		}
	}
	if m.Claims == nil {
		return []string{"the cause cannot be told: the host says nothing about what it loaded"}
	}
	if hints := kernelCauses(o, m, in, matches); hints != nil {
		return hints
	}
	if m.Claims.Firmware != sha256.Sum256(in.image.Bytes) {
		return []string{fmt.Sprintf("the host says it loaded another firmware: sha256 %x", m.Claims.Firmware)}
	}
	return []string{
		"the host claims to have loaded what you named, and the platform says otherwise",
		"the measurement may be of another session or another launch: take a new one",
	}
}

// kernelCauses tries the host's claimed hashes in place of the owner's.
func kernelCauses(o *ownerFile, m *exchange.Measurement, in *inputs, matches func(sev.Policy, [32]byte) bool) []string {
	claim := m.Claims.Kernel
	if claim == nil {
		return nil
	}
	if in.Kernel == nil {
		if d, err := in.digestWith(claim); err == nil && matches(o.Policy, d) {
			return []string{"cause: the host had a kernel measured, and you named none: give --kernel, --initrd and --cmdline"}
		}
		return nil
	}
	names := [3]string{"kernel", "initrd", "command line"}
	var best []string
	for mask := 1; mask < 8; mask++ {
		h := *in.Kernel
		var differs []string
		for i, f := range [3]struct{ own, theirs *[32]byte }{
			{&h.Kernel, &claim.Kernel}, {&h.Initrd, &claim.Initrd}, {&h.Cmdline, &claim.Cmdline},
		} {
			if mask&(1<<i) != 0 {
				if *f.own != *f.theirs {
					differs = append(differs, fmt.Sprintf("the %s is another one: the platform measured sha256 %x, yours has %x", names[i], *f.theirs, *f.own))
				}
				*f.own = *f.theirs
			}
		}
		d, err := in.digestWith(&h)
		if err == nil && len(differs) > 0 && matches(o.Policy, d) && (best == nil || len(differs) < len(best)) {
			best = differs
		}
	}
	if best == nil {
		return nil
	}
	return []string{"cause: " + strings.Join(best, "; ")}
}

// digestWith predicts for another kernel.
func (in *inputs) digestWith(kernel *sev.KernelHashes) ([32]byte, error) {
	other := in.Inputs
	other.Kernel = kernel
	d, err := launch.Digest(other)
	if err != nil {
		return [32]byte{}, err
	}
	return [32]byte(d), nil
}

func reportVerdict(c *urfave.Context, s *cli.IO, o *ownerFile, m *exchange.Measurement, digest [32]byte, verdict error) error {
	if c.Bool("json") {
		out := map[string]any{
			"schema": "latchkey.verdict/1", "verified": verdict == nil, "emulated": o.Emulated, "root": o.Root,
			"expected-digest": hex.EncodeToString(digest[:]), "policy": o.Policy, "firmware": m.Firmware,
		}
		var e *cli.Error
		if errors.As(verdict, &e) {
			out["reason"], out["causes"] = verdict.Error(), e.Hints
		}
		if err := s.JSON(out); err != nil {
			return err
		}
		if e != nil {
			e.Quiet = true
		}
		return verdict
	}
	if verdict != nil {
		return verdict
	}
	fmt.Fprintf(s.Out, "verified%s\n", label(o.Emulated))
	if o.Policy&sev.PolicyNoDebug == 0 {
		fmt.Fprintln(s.Out, "WARNING: the policy lets the host read the guest's memory (no-debug is missing)")
	}
	fmt.Fprintf(s.Out, "launch digest  %x\npolicy         %v\nSEV firmware   %v\nplatform root  %s\n", digest, o.Policy, m.Firmware, o.Root)
	return nil
}
