// Package bundle keeps what evidence is judged by, in one file: certificates, revocation lists
// and collateral of AMD's and Intel's. Each part is signed by its vendor, so a bundle may come
// from any source; and each is verified before it is kept, and again when it is used.
package bundle

import (
	"bytes"
	"cmp"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/vmlatch/vmlatch/firmware/pki"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
)

// Schema names the format.
const Schema = "latch-bundle/1"

// Bounds of a bundle: a host's platforms have some ten parts of a few KB each.
const (
	MaxSize  = 4 << 20
	maxParts = 4096
)

// ErrFormat is wrapped by errors about files that are not bundles.
var ErrFormat = errors.New("not a bundle")

// Kind is what a part is.
type Kind string

// Kinds of parts.
const (
	Endorsement Kind = "amd-endorsement" // VCEK or VLEK certificate, DER
	AMDCRL      Kind = "amd-crl"         // DER
	CEK         Kind = "amd-cek"         // signed certificate of an SEV chip, 2084 bytes
	RootCRL     Kind = "intel-root-crl"  // DER
	PCKCRL      Kind = "intel-pck-crl"   // DER
	TCBInfo     Kind = "intel-tcb-info"  // exact JSON
	QEIdentity  Kind = "intel-qe-identity"
)

// Part is something that a vendor has signed.
type Part struct {
	Kind      Kind   `json:"kind"`
	Data      []byte `json:"data"`                // the exact bytes
	Chain     []byte `json:"chain,omitempty"`     // PEM, of parts that do not name their signer
	Signature []byte `json:"signature,omitempty"` // r and s, of these

	read *reading // nil where it is read anew each time
}

// Bundle is a set of parts. Several goroutines may use one that none changes.
type Bundle struct {
	Schema string `json:"schema"`
	Parts  []Part `json:"parts"`

	mu   sync.Mutex
	sets map[[4]*byte]*collateral.Collateral // that were put together before
}

// New is an empty bundle.
func New() *Bundle { return &Bundle{Schema: Schema, Parts: []Part{}} }

// Roots are the authorities that a bundle's parts must lead to.
type Roots struct {
	AMD    *kds.Roots
	Intel  *collateral.Root
	SEV    []sev.Root
	Vendor bool // they are the vendors' own
}

// Genuine are the vendors' own roots, which are compiled in.
func Genuine() Roots { return Roots{AMD: kds.AMD(), Intel: collateral.Intel(), Vendor: true} }

// Parse reads a bundle. Its parts are not verified yet.
func Parse(b []byte) (*Bundle, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrFormat, len(b), MaxSize)
	}
	if text := bytes.TrimSpace(b); len(text) == 0 || text[0] != '{' {
		return nil, fmt.Errorf("%w: it is not JSON", ErrFormat)
	}
	var x Bundle
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&x); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if d.More() {
		return nil, fmt.Errorf("%w: there is something behind it", ErrFormat)
	}
	if x.Schema != Schema {
		return nil, fmt.Errorf("%w: schema is %q, must be %q", ErrFormat, x.Schema, Schema)
	}
	if len(x.Parts) > maxParts {
		return nil, fmt.Errorf("%w: %d parts, at most %d", ErrFormat, len(x.Parts), maxParts)
	}
	x.settle()
	return &x, nil
}

// Bytes is the bundle as a file. Equal sets of parts give equal files.
func (b *Bundle) Bytes() ([]byte, error) {
	if len(b.Parts) > maxParts {
		return nil, fmt.Errorf("%w: %d parts, at most %d", ErrFormat, len(b.Parts), maxParts)
	}
	text, err := json.MarshalIndent(&Bundle{Schema: b.Schema, Parts: sorted(b.Parts)}, "", " ")
	if err == nil && len(text) >= MaxSize {
		err = fmt.Errorf("%w: %d bytes, at most %d", ErrFormat, len(text), MaxSize)
	}
	return append(text, '\n'), err
}

// sorted are parts in an order of their own, each once.
func sorted(parts []Part) []Part {
	list := slices.Clone(parts)
	slices.SortFunc(list, func(x, y Part) int {
		return cmp.Or(cmp.Compare(x.Kind, y.Kind), bytes.Compare(x.Data, y.Data), bytes.Compare(x.Chain, y.Chain),
			bytes.Compare(x.Signature, y.Signature))
	})
	return slices.CompactFunc(list, func(x, y Part) bool { return x.is(&y) })
}

// is reports whether a part is another, byte by byte.
func (p *Part) is(other *Part) bool {
	return p.Kind == other.Kind && bytes.Equal(p.Data, other.Data) && bytes.Equal(p.Chain, other.Chain) &&
		bytes.Equal(p.Signature, other.Signature)
}

// settle puts the parts in order after a change, and prepares them to be read.
func (b *Bundle) settle() {
	b.Parts, b.sets = sorted(b.Parts), nil
	for i := range b.Parts {
		if p := &b.Parts[i]; p.kept() == nil {
			p.read = newReading(p)
		}
	}
}

// Add keeps a part that verifies, in the place of those that it makes obsolete, and of those of
// the same data that do not verify. It reports whether the bundle changed: a part that the
// bundle has, or one that another makes obsolete, changes nothing. The order of additions plays
// no part.
func (b *Bundle) Add(p Part, roots Roots) (changed bool, err error) {
	if p.Chain, err = tidy(p.Chain); err != nil {
		return false, err
	}
	p.read = newReading(&p)
	info, err := p.Inspect(roots)
	if err != nil {
		return false, err
	}
	for i := range b.Parts {
		other := &b.Parts[i]
		if other.Kind != p.Kind {
			continue
		}
		o, err := other.Inspect(roots)
		if err == nil && (bytes.Equal(other.Data, p.Data) || o.supersedes(info)) {
			return false, nil
		}
	}
	if len(b.Parts) >= maxParts {
		return false, fmt.Errorf("%w: it has %d parts already", ErrFormat, len(b.Parts))
	}
	b.Parts = slices.DeleteFunc(b.Parts, func(other Part) bool {
		if other.Kind != p.Kind {
			return false
		}
		o, err := other.Inspect(roots)
		return err != nil && bytes.Equal(other.Data, p.Data) || err == nil && info.supersedes(o)
	})
	b.Parts = append(b.Parts, p)
	b.settle()
	return true, nil
}

// tidy is a chain without what stands between its certificates, which no signature covers.
func tidy(chain []byte) (text []byte, err error) {
	if chain == nil {
		return nil, nil
	}
	list, err := pki.ParsePEM(chain)
	if err != nil {
		return nil, refusal.New(refusal.Chain).Because("%v", err)
	}
	for _, c := range list {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return text, nil
}
