package explain

import (
	"bytes"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/launch"
)

// Change is one difference between what was predicted and what was measured.
type Change struct {
	What string `json:"what"` // kernel, vcpus, cpu, firmware, policy, …
	From string `json:"from"` // as predicted
	To   string `json:"to"`   // as the platform measured
	Say  string `json:"say"`  // the same as a sentence
}

// Result is what a search came to.
type Result struct {
	Found   bool     `json:"found"`
	Changes []Change `json:"changes"` // empty if the prediction was right
	Tried   int      `json:"tried"`   // combinations that were compared
}

// Sentence tells the result to a person.
func (r *Result) Sentence() string {
	if !r.Found {
		return ""
	}
	if len(r.Changes) == 0 {
		return "they agree: nothing differs"
	}
	say := make([]string, len(r.Changes))
	for i, c := range r.Changes {
		say[i] = c.Say
	}
	return strings.Join(say, "; and ")
}

// Observed is what a platform showed: a digest, or a measurement under a key.
type Observed interface {
	// Matches reports whether a digest is the one that was seen.
	Matches(digest []byte) bool
	// Under tries other circumstances than the expected ones with a digest, and
	// returns what differs then; n is how many it tried. At most `most` changes.
	Under(digest []byte, most int) (changes []Change, n int)
}

// Digest is an observed digest: an SNP report's, TDX's MRTD, or one from a log.
type Digest []byte

// Matches compares.
func (d Digest) Matches(digest []byte) bool { return bytes.Equal(d, digest) }

// Under has nothing to try.
func (d Digest) Under([]byte, int) ([]Change, int) { return nil, 0 }

// Firmware is another firmware that may have been loaded.
type Firmware struct {
	Name   string
	Layout *launch.Layout
}

// Query is what to explain.
type Query struct {
	Inputs    launch.Inputs     // as the owner predicts
	Kernel    *Kernel           // what Inputs.Kernel was made from; nil without
	Claimed   *sev.KernelHashes // what the host says it loaded; nil if it says nothing
	Firmware  string            // name of the predicted firmware
	Firmwares []Firmware        // others
	Observed  Observed
}

// Kernel is what the kernel hashes were made from, and what else may be there.
type Kernel struct {
	HasInitrd bool
	Cmdline   string
	// Hashes that the host claims or that other files have, by what they are.
	OtherKernels, OtherInitrds, OtherCmdlines []NamedHash
	// OtherConfigs are the owner's initrd with configurations of the first boot that differ.
	OtherConfigs []NamedHash
}

// NamedHash is a hash and where it comes from.
type NamedHash struct {
	Name string
	Hash [32]byte
}

// MaxVCPUs is how many virtual CPUs are tried.
const MaxVCPUs = 512

// candidate is one combination.
type candidate struct {
	in      launch.Inputs
	sweep   bool // of all numbers of vCPUs
	changes []Change
}

// Search looks for the smallest change, up to two at a time.
func Search(q *Query) *Result {
	s := &search{q: q, begun: map[prefix]*launch.Measurement{}, result: &Result{Changes: []Change{}}}
	base := candidate{in: q.Inputs}
	alternatives := s.alternatives()
	if s.try(base, 0) || s.try(base, 1) {
		return s.result
	}
	for _, dim := range alternatives {
		for _, a := range dim {
			if s.try(a(base), 0) {
				return s.result
			}
		}
	}
	if s.try(base, 2) {
		return s.result
	}
	for _, two := range s.kernelPairs() {
		if s.try(two(base), 0) {
			return s.result
		}
	}
	for i, first := range alternatives {
		for _, a := range first {
			one := a(base)
			if s.try(one, 1) {
				return s.result
			}
			for _, second := range alternatives[i+1:] {
				for _, b := range second {
					if s.try(b(one), 0) {
						return s.result
					}
				}
			}
		}
	}
	return s.result
}

type search struct {
	q      *Query
	begun  map[prefix]*launch.Measurement
	result *Result
}

// prefix is what a measurement depends on before its vCPUs.
type prefix struct {
	firmware *launch.Layout
	kernel   sev.KernelHashes
	hashes   bool
	vmm      launch.VMM
	svsm     *launch.SVSM
}

// begin measures what comes before the vCPUs, once for all that share it. It
// returns nil where no platform gives a digest.
func (s *search) begin(in launch.Inputs) *launch.Measurement {
	p := prefix{firmware: in.Firmware, vmm: in.VMM, svsm: in.SVSM, hashes: in.Kernel != nil}
	if in.Kernel != nil {
		p.kernel = *in.Kernel
	}
	m, ok := s.begun[p]
	if !ok {
		m, _ = launch.Begin(in) // nil with an error
		s.begun[p] = m
	}
	if m == nil {
		return nil
	}
	return m.With(in)
}

// try compares a combination; more is how many changes besides the candidate's
// may lie in the circumstances of the observation. It returns true on a match.
func (s *search) try(c candidate, more int) bool {
	m := s.begin(c.in)
	if m == nil {
		return false
	}
	if !c.sweep {
		if m.AddVCPUs(c.in.VCPUs) != nil {
			return false
		}
		return s.compare(m.Sum(), more, func() []Change { return c.changes })
	}
	for n := 1; n <= MaxVCPUs; n++ {
		if m.AddVCPUs(1) != nil {
			return false
		}
		if n == s.q.Inputs.VCPUs {
			continue
		}
		changes := func() []Change { return append(slices.Clip(c.changes), vcpuChange(s.q.Inputs.VCPUs, n)) }
		if s.compare(m.Sum(), more, changes) {
			return true
		}
	}
	return false
}

// compare notes the changes if they explain a digest. They are put into words then,
// and not for each of the many that do not.
func (s *search) compare(digest []byte, more int, changes func() []Change) bool {
	if more == 0 {
		if s.result.Tried++; s.q.Observed.Matches(digest) {
			s.result.Found, s.result.Changes = true, append(s.result.Changes, changes()...)
			return true
		}
		return false
	}
	found, n := s.q.Observed.Under(digest, more)
	s.result.Tried += n
	if found == nil {
		return false
	}
	s.result.Found, s.result.Changes = true, append(append(s.result.Changes, changes()...), found...)
	return true
}
