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
	once sync.Once
	ek   *kds.Certificate
	crl  *x509.RevocationList
	line kds.Line // of AMD's list
	info *collateral.TCBInfo
	qe   *collateral.QEIdentity
}

// content reads a part. Nothing is verified.
func (p *Part) content() *reading {
	r := p.read
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
