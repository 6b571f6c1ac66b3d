package bundle

import (
	"crypto/x509"
	"sync"

	"github.com/vmlatch/vmlatch/firmware/pki"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
)

// reading is what a part says, read once. What cannot be read is nil.
type reading struct {
	of Part // what was read: a copy of a part that was changed is read anew

	mu   sync.Mutex
	seen map[authority]inspection

	once sync.Once
	ek   *kds.Certificate
	crl  *x509.RevocationList
	line kds.Line // of AMD's list
	info *collateral.TCBInfo
	qe   *collateral.QEIdentity
}

// newReading keeps what a part says.
func newReading(p *Part) *reading { return &reading{of: *p} }

// kept is what was read of exactly these bytes; nil for nothing.
func (p *Part) kept() *reading {
	if p.read == nil || !same(p.Data, p.read.of.Data) || !same(p.Chain, p.read.of.Chain) ||
		!same(p.Signature, p.read.of.Signature) || p.Kind != p.read.of.Kind {
		return nil
	}
	return p.read
}

// same reports whether two slices are the same memory.
func same(a, b []byte) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }

// content reads a part. Nothing is verified.
func (p *Part) content() *reading {
	r := p.kept()
	if r == nil {
		r = &reading{}
	}
	r.once.Do(func() {
		switch p.Kind {
		case Endorsement:
			r.ek, _ = kds.ParseCertificate(p.Data)
		case AMDCRL:
			if c, err := kds.ParseCRL(p.Data); err == nil {
				r.crl, r.line = c.X509, c.Line
			}
		case RootCRL, PCKCRL:
			r.crl, _ = pki.ParseCRL(p.Data)
		case TCBInfo:
			r.info, _ = collateral.ParseTCBInfo(p.Data)
		case QEIdentity:
			r.qe, _ = collateral.ParseQEIdentity(p.Data)
		}
	})
	return r
}

// authority are the roots that a part was verified by.
type authority struct {
	amd   *kds.Roots
	intel *collateral.Root
}

type inspection struct {
	info *Info
	err  error
}

// inspected inspects a part, once for each authority.
func (r *reading) inspected(by authority, inspect func() (*Info, error)) (*Info, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if x, ok := r.seen[by]; ok {
		return x.info, x.err
	}
	info, err := inspect()
	if r.seen == nil {
		r.seen = map[authority]inspection{}
	}
	r.seen[by] = inspection{info, err}
	return info, err
}
