package under

import (
	"bytes"
	"sync"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/swtee"
)

// Record is what the launch of a guest submitted, for a front end that lets the guest run
// elsewhere.
// Its methods may be called from any goroutine.
type Record struct {
	mu      sync.Mutex
	regions []Region
	secret  *Secret
	snp     *swtee.SNPGuest
	td      *swtee.TD
}

// Region is memory that one command submitted.
type Region struct {
	GPA      uint64 // swtee.UnknownGPA if it was in no memory slot
	Type     sev.PageType
	Measured bool
	Contents []byte // of pages that the firmware fills in itself, what was submitted

	hva uint64
}

// Secret is an injected secret in clear.
type Secret struct {
	GPA   uint64
	Plain []byte
}

// Regions returns what was submitted so far, in its order, and forgets it.
func (r *Record) Regions() []Region {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := r.regions
	r.regions = nil
	return list
}

// TakeSecret returns the last secret that was injected, once. The caller wipes it.
func (r *Record) TakeSecret() *Secret {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.secret
	r.secret = nil
	return s
}

// SNP returns the guest's context; nil for other technologies.
func (r *Record) SNP() *swtee.SNPGuest {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.snp
}

// TD returns the trust domain's context; nil for other technologies.
func (r *Record) TD() *swtee.TD {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.td
}

// The following are called by the supervisor, with or without a record.

func (r *Record) reset() {
	if r != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.forget()
		r.regions, r.snp, r.td = nil, nil, nil
	}
}

func (r *Record) forget() {
	if r.secret != nil {
		clear(r.secret.Plain)
		r.secret = nil
	}
}

func (r *Record) wipe() {
	if r != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.forget()
	}
}

// add takes ownership of the contents.
func (r *Record) add(n Region) {
	if r != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.regions = append(r.regions, n)
	}
}

func (r *Record) inject(gpa uint64, plain []byte) {
	if r != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.forget()
		r.secret = &Secret{gpa, bytes.Clone(plain)}
	}
}

func (r *Record) guest(snp *swtee.SNPGuest, td *swtee.TD) {
	if r != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.snp, r.td = snp, td
	}
}

// place fills in addresses that were not known when the regions were submitted: QEMU loads firmware
// before it tells KVM where that is.
func (r *Record) place(gpaOf func(hva uint64) uint64) {
	if r != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		for i := range r.regions {
			if n := &r.regions[i]; n.GPA == swtee.UnknownGPA {
				n.GPA = gpaOf(n.hva)
			}
		}
	}
}
