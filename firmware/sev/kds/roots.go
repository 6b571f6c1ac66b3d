package kds

import (
	"crypto/x509"
	_ "embed"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/vmlatch/vmlatch/firmware/pki"
	"github.com/vmlatch/vmlatch/firmware/refusal"
)

//go:embed amd.pem
var amdPEM []byte

// Roots are the authorities above endorsement certificates, by line.
type Roots struct {
	Emulated bool // test roots, whose certificates prove nothing
	lines    map[Line]*authorities
}

// authorities of one line. The root is trusted; the others must be signed by it.
type authorities struct{ ark, ask, asvk *x509.Certificate }

// AMD returns AMD's own roots, which are compiled in.
func AMD() *Roots { return amd() }

var amd = sync.OnceValue(func() *Roots {
	r, err := ParseRoots(amdPEM)
	if err != nil {
		panic("kds: AMD's roots: " + err.Error())
	}
	r.Emulated = false
	return r
})

// ErrRoots is wrapped by errors about files of roots.
var ErrRoots = errors.New("not a file of AMD roots")

// ParseRoots reads test roots: PEM certificates with the names that AMD's have, ARK-LINE,
// SEV-LINE and SEV-VLEK-LINE. Others are left alone.
func ParseRoots(text []byte) (*Roots, error) {
	r := &Roots{Emulated: true, lines: map[Line]*authorities{}}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrRoots, err)
		}
		r.add(c)
	}
	for l, a := range r.lines {
		if a.ark == nil {
			return nil, fmt.Errorf("%w: the root of %s is missing", ErrRoots, l)
		}
		if a.ask == nil && a.asvk == nil {
			return nil, fmt.Errorf("%w: ARK-%s is there, and neither SEV-%[2]s nor SEV-VLEK-%[2]s", ErrRoots, l)
		}
	}
	if len(r.lines) == 0 {
		return nil, fmt.Errorf("%w: it has no certificate named ARK-…", ErrRoots)
	}
	return r, nil
}

func (r *Roots) add(c *x509.Certificate) {
	for _, l := range Lines() {
		a := r.lines[l]
		if a == nil {
			a = &authorities{}
		}
		switch c.Subject.CommonName {
		case "ARK-" + string(l):
			a.ark = c
		case issuerOf(l, VCEK):
			a.ask = c
		case issuerOf(l, VLEK):
			a.asvk = c
		default:
			continue
		}
		r.lines[l] = a
	}
}

// over returns the root and the intermediate authority above a kind of key.
func (r *Roots) over(l Line, s Signer) (ark, inter *x509.Certificate, err error) {
	a := r.lines[l]
	if a == nil {
		return nil, nil, refusal.New(refusal.Chain).Because("there is no root for %s", l)
	}
	inter = a.ask
	if s == VLEK {
		inter = a.asvk
	}
	if inter == nil {
		return nil, nil, refusal.New(refusal.Chain).Because("there is no authority %s", issuerOf(l, s))
	}
	return a.ark, inter, nil
}

// Chain checks that a certificate is signed by the right authority of its line, up to the
// root, and that all are valid at a time. The error is a refusal.
func (r *Roots) Chain(c *Certificate, asOf time.Time) error {
	ark, inter, err := r.over(c.Line, c.Signer)
	if err != nil {
		return err
	}
	for _, link := range []struct{ child, parent *x509.Certificate }{{c.X509, inter}, {inter, ark}} {
		if err := pki.SignedBy(link.child, link.parent); err != nil {
			return err
		}
	}
	return pki.ValidAt(asOf, c.X509, inter, ark)
}

// Expires is the first time at which a certificate of a chain is no longer valid.
func (r *Roots) Expires(c *Certificate) time.Time {
	first := c.X509.NotAfter
	if ark, inter, err := r.over(c.Line, c.Signer); err == nil {
		for _, x := range []*x509.Certificate{inter, ark} {
			if x.NotAfter.Before(first) {
				first = x.NotAfter
			}
		}
	}
	return first
}

// Has reports whether a root is among these.
func (r *Roots) Has(l Line) bool { return r.lines[l] != nil }

// Names lists the common names of the roots.
func (r *Roots) Names() string {
	var names []string
	for _, l := range Lines() {
		if a := r.lines[l]; a != nil {
			names = append(names, a.ark.Subject.CommonName)
		}
	}
	return strings.Join(names, ", ")
}
