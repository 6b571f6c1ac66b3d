package seal

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/vmlatch/vmlatch/firmware/tpm"
)

// ErrPolicy is wrapped by errors about policies that would protect nothing, or would soon lock
// their owner out.
var ErrPolicy = errors.New("policy")

// ClosingPCR is extended by who unseals in the initrd, before anything else runs, so that nothing
// that comes later unseals again, if the policy names it. Nothing extends it before that in an
// initrd without systemd's own measurements.
const ClosingPCR = 15

// Closing is what ClosingPCR is extended by.
const Closing = "vmlatch closed v1"

// fragile are registers that change without a change of what is booted.
var fragile = map[int]string{
	1:  "tables of QEMU and of the firmware: it changes with QEMU's version, memory and devices",
	5:  "partitions, and how often ExitBootServices was tried: it changes by chance",
	10: "what Linux (IMA) measures: it includes PCR 1",
}

// CheckSelection is an error for registers to which nothing should be sealed. secureBoot is whether
// the machine boots with Secure Boot: without it PCR 7 is a public constant.
func CheckSelection(s tpm.Selection, secureBoot bool) error {
	worth := 0
	for _, n := range s.PCRs {
		if why, ok := fragile[n]; ok {
			return fmt.Errorf("%w: PCR %d holds %s", ErrPolicy, n, why)
		}
		if n != 7 && n != ClosingPCR || n == 7 && secureBoot {
			worth++
		}
	}
	switch {
	case worth > 0:
	case slices.Contains(s.PCRs, 7):
		return fmt.Errorf(
			"%w: PCR 7 without Secure Boot is the same for all machines, and protects nothing",
			ErrPolicy,
		)
	default:
		return fmt.Errorf("%w: no register that depends on what is booted", ErrPolicy)
	}
	return nil
}

// counter is the counter's handle and name, which the first increment changes.
func counter() (*tpm2.NamedHandle, error) {
	p := tpm.CounterPublic()
	p.Attributes.Written = true
	name, err := tpm2.NVName(&p)
	if err != nil {
		return nil, err
	}
	return &tpm2.NamedHandle{Handle: tpm.Counter, Name: *name}, nil
}

// step is a command of a policy: both what a TPM is asked, and what its digest is.
type step interface {
	Update(policy *tpm2.PolicyCalculator) error
}

// digestOf is the digest of a policy.
func digestOf(steps ...step) ([]byte, error) {
	p, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return nil, err
	}
	for _, s := range steps {
		if err := s.Update(p); err != nil {
			return nil, err
		}
	}
	return p.Hash().Digest, nil
}

// registers wants values of registers.
func registers(s tpm.Selection, values map[int][]byte) (*tpm2.PolicyPCR, error) {
	digest, err := s.Digest(values)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	return &tpm2.PolicyPCR{PcrDigest: tpm2.TPM2BDigest{Buffer: digest}, Pcrs: s.List()}, nil
}

// notEnded wants the counter to be at most a version.
func notEnded(version uint64) (*tpm2.PolicyNV, error) {
	index, err := counter()
	if err != nil {
		return nil, err
	}
	return &tpm2.PolicyNV{
		AuthHandle: tpm2.AuthHandle{Handle: index.Handle, Name: index.Name, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    *index, OperandB: tpm2.TPM2BOperand{Buffer: binary.BigEndian.AppendUint64(nil, version)},
		Operation: tpm2.TPMEOUnsignedLE,
	}, nil
}

// reference is the policyRef of approvals: one for another name does not count.
func reference(name string) []byte {
	sum := sha256.Sum256([]byte("vmlatch tpm policy v1\x00" + name))
	return sum[:]
}
