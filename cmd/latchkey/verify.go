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
		Description: `Exit code 0: the platform measured exactly the files that you named, under your policy.
Exit code 4: it did not; the likely cause is named where that can be determined.
The verified digest is kept in the owner file, for "latchkey secret".

Example:

   latchkey verify --owner guest.owner --measurement measurement.json \
      --firmware OVMF.amdsev.fd --kernel vmlinuz --initrd initrd.img --cmdline console=ttyS0`,
		Flags: inputFlags(
			&urfave.StringFlag{Name: "owner", Usage: "your owner `FILE` of the session"},
			&urfave.StringFlag{
				Name:  "measurement",
				Usage: "the host's `FILE` (vmlatch measure), - for standard input",
			},
			passphraseFlag(), deviceFlag(),
			&urfave.BoolFlag{Name: "json", Usage: "print JSON"},
		),
		Action: func(c *urfave.Context) error {
			if _, err := cli.Args(c); err != nil {
				return err
			}
			if err := cli.Need(c, "owner", "measurement"); err != nil {
				return err
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
	st := openStore(c, s)
	defer st.wipe()
	o, err := st.read()
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
		err = st.update(func(o *ownerFile) error {
			room, err := in.secretRoom()
			o.Verified = &verified{Digest: digest, Hex: hex.EncodeToString(digest[:]), Room: &room}
			return err
		})
		if err != nil {
			return err
		}
	}
	return (&verifyReport{o, m, digest, verdict}).print(c, s)
}

func readMeasurement(s *cli.IO, name string) (*exchange.Measurement, error) {
	b, err := s.ReadInput(name, exchange.MaxFile)
	if err != nil {
		return nil, cli.Fail(cli.ExitUsage, err)
	}
	m, err := exchange.ParseMeasurement(b)
	return m, cli.Fail(cli.ExitUsage, err)
}

// check decides. The policy and the keys are the owner's; the only value that comes from
// the host is the firmware version, which the MAC covers.
func check(o *ownerFile, m *exchange.Measurement, in *inputs, digest [32]byte) error {
	blob, err := sev.ParseMeasurement(m.Measurement)
	if err != nil {
		return err
	}
	keys := o.keys()
	defer keys.Wipe()
	matches := func(p sev.Policy, d [32]byte) bool { return keys.Verifies(blob, m.Firmware, p, d) }
	if matches(o.Policy, digest) {
		return checkAPI(o, m)
	}
	return cli.Fail(cli.ExitRefused, errMismatch, causes(o, m, in, digest, matches)...)
}

// checkAPI compares the firmware's version, which the MAC has proven, with --min-api.
func checkAPI(o *ownerFile, m *exchange.Measurement) error {
	major, minor, err := parseAPI(o.MinAPI)
	if o.MinAPI == "" || err == nil && m.Firmware.AtLeast(major, minor) {
		return nil
	}
	return cli.Fail(
		cli.ExitRefused,
		fmt.Errorf(
			"the platform's firmware is %v, older than the %s that the session asks for",
			m.Firmware,
			o.MinAPI,
		),
	)
}

// A matcher reports whether a measurement is of a digest under a policy.
type matcher func(sev.Policy, [32]byte) bool

// causes tries what could explain a measurement that does not verify. A change
// that makes the MAC match is proven; the host's claims only suggest what to try.
func causes(o *ownerFile, m *exchange.Measurement, in *inputs, digest [32]byte, matches matcher) []string {
	if m.Policy != o.Policy && matches(m.Policy, digest) {
		return []string{fmt.Sprintf("cause: the policy is %v instead of your session's %v", m.Policy, o.Policy)}
	}
	if in.Kernel != nil {
		if d, err := in.digestWith(nil); err == nil && matches(o.Policy, d) {
			return []string{"cause: the host did not have the kernel measured: kernel-hashes is off"}
		}
	}
	if m.Claims == nil {
		return []string{"the cause cannot be determined: the host does not say what it loaded"}
	}
	if hints := kernelCauses(o, m, in, matches); hints != nil {
		return hints
	}
	if m.Claims.Firmware != sha256.Sum256(in.image.Bytes) {
		return []string{
			fmt.Sprintf("the host says that it loaded a different firmware: sha256 %x", m.Claims.Firmware),
		}
	}
	return []string{
		"the host claims to have loaded your files, but the platform measured something else",
		"the measurement may be of another session or another launch: take a new one",
	}
}

// kernelCauses tries the host's claimed hashes in place of the owner's.
func kernelCauses(o *ownerFile, m *exchange.Measurement, in *inputs, matches matcher) []string {
	claim := m.Claims.Kernel
	if claim == nil {
		return nil
	}
	if in.Kernel == nil {
		if d, err := in.digestWith(claim); err == nil && matches(o.Policy, d) {
			return []string{"cause: the host had a kernel measured, but you named no kernel: " +
				"give --kernel, --initrd and --cmdline"}
		}
		return nil
	}
	var best []string
	for mask := 1; mask < 8; mask++ {
		h, differs := replaced(*in.Kernel, claim, mask)
		d, err := in.digestWith(&h)
		if err == nil && len(differs) > 0 && matches(o.Policy, d) && (best == nil || len(differs) < len(best)) {
			best = differs
		}
	}
	if best == nil {
		return nil
	}
	hints := []string{"cause: " + strings.Join(best, "; ")}
	if claim.Cmdline != in.Kernel.Cmdline && differsInBlanks(in.line, claim.Cmdline) {
		hints = append(hints, "only white space before, between or behind the words of the command line differs:"+
			" it is compared to the byte")
	}
	return hints
}

// differsInBlanks reports whether a measured command line is the owner's but for white space.
func differsInBlanks(own string, measured [32]byte) bool {
	words := strings.Join(strings.Fields(own), " ")
	for _, line := range []string{
		strings.TrimSpace(own), words, own + " ", own + "\n", " " + own, words + " ", words + "\n",
		strings.TrimSuffix(own, "\n"),
	} {
		if line != own && sha256.Sum256([]byte(line+"\x00")) == measured {
			return true
		}
	}
	return false
}

// replaced puts the host's hashes in place of the owner's where the mask has a bit set,
// and describes those that differ.
func replaced(h sev.KernelHashes, claim *sev.KernelHashes, mask int) (sev.KernelHashes, []string) {
	var differs []string
	for i, f := range [...]struct {
		name        string
		own, theirs *[32]byte
	}{
		{"kernel", &h.Kernel, &claim.Kernel},
		{"initrd", &h.Initrd, &claim.Initrd},
		{"command line", &h.Cmdline, &claim.Cmdline},
	} {
		if mask&(1<<i) == 0 || *f.own == *f.theirs {
			continue
		}
		differs = append(differs, fmt.Sprintf("the %s differs: the platform measured sha256 %x, yours is %x",
			f.name, *f.theirs, *f.own))
		*f.own = *f.theirs
	}
	return h, differs
}

// digestWith predicts the digest with a different kernel.
func (in *inputs) digestWith(kernel *sev.KernelHashes) ([32]byte, error) {
	other := in.Inputs
	other.Kernel = kernel
	d, err := launch.Digest(other)
	if err != nil {
		return [32]byte{}, err
	}
	return [32]byte(d), nil
}

// verifyReport is what verify prints.
type verifyReport struct {
	owner       *ownerFile
	measurement *exchange.Measurement
	digest      [32]byte // expected
	verdict     error    // nil: verified
}

func (r *verifyReport) print(c *urfave.Context, s *cli.IO) error {
	o, m, digest, verdict := r.owner, r.measurement, r.digest, r.verdict
	if c.Bool("json") {
		out := map[string]any{
			"schema":          "latchkey.verdict/1",
			"verified":        verdict == nil,
			"emulated":        o.Emulated,
			"root":            o.Root,
			"expected-digest": hex.EncodeToString(digest[:]),
			"policy":          o.Policy,
			"open":            o.Policy.Open(),
			"firmware":        m.Firmware,
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
	_, err := fmt.Fprintf(s.Out, "launch digest  %x\npolicy         %v\nSEV firmware   %v\nplatform root  %s\n",
		digest, o.Policy, m.Firmware, o.Root)
	for _, open := range o.Policy.Open() {
		_, err = fmt.Fprintf(s.Out, "left open      %s\n", open)
	}
	return err
}
