// Package attest vouches for an emulated platform in AMD's and Intel's place: it keeps authorities
// of the platform's own, signs its reports and quotes, and issues the revocation lists and the
// collateral by which they are judged. All of it has the shapes of the real, so that any verifier
// can judge it that is told to trust these roots. The names in the certificates are AMD's and
// Intel's, because verifiers demand them; each also bears [Label].
//
// Keys are made once for a platform, when they are first needed, and stay in its directory.
//
// Sources: "KDS", AMD publication 57230; "SNP ABI", AMD publication 56860; Intel, "SGX PCK
// Certificate and Certificate Revocation List Profile Specification"; Intel, "TDX DCAP Quoting
// Library API"; Intel, "Provisioning Certification Service", API version 4.
package attest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/vmlatch/vmlatch/firmware/pki"
	"github.com/vmlatch/vmlatch/firmware/swtee/internal/keyfile"
)

// Label stands in the certificates of emulated platforms, and in their quotes.
const Label = "EMULATED by swtee: proves nothing"

// Names of the files that hold the keys, in a platform's directory.
const (
	FileAMD   = "sev-snp.json"
	FileIntel = "tdx.json"
)

const about = "keys of an emulated platform (swtee): they protect nothing"

// ErrKeys means that a file does not hold what belongs in it.
var ErrKeys = errors.New("keys and certificates do not belong together")

// stored is a key with its certificate in a file. The key may be left out.
type stored struct {
	Key  []byte `json:"key,omitempty"` // PKCS #8
	Cert []byte `json:"certificate"`   // DER
}

func store(a *pki.Authority, withKey bool) (s stored, err error) {
	s.Cert = a.Cert.Raw
	if withKey {
		s.Key, err = x509.MarshalPKCS8PrivateKey(a.Key)
	}
	return s, err
}

// kept is a file with keys.
type kept struct{ name string }

func (k kept) damaged(err error) error { return &keyfile.Damaged{File: k.name, Err: err} }

func (k kept) certificates(all map[*stored]**x509.Certificate) error {
	for from, to := range all {
		c, err := x509.ParseCertificate(from.Cert)
		if err != nil {
			return k.damaged(err)
		}
		*to = c
	}
	return nil
}

// signer reads a key, which takes long, only when it is needed.
func (k kept) signer(s *stored) (*pki.Authority, error) {
	c, err := x509.ParseCertificate(s.Cert)
	if err != nil {
		return nil, k.damaged(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(s.Key)
	if err != nil {
		return nil, k.damaged(err)
	}
	signer, ok := key.(crypto.Signer)
	public, ok2 := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !ok2 || !public.Equal(signer.Public()) {
		return nil, k.damaged(fmt.Errorf("%s: %w", c.Subject.CommonName, ErrKeys))
	}
	return &pki.Authority{Key: signer, Cert: c}, nil
}

func ecdsaKey(a *pki.Authority, err error) (*ecdsa.PrivateKey, error) {
	if err != nil {
		return nil, err
	}
	k, ok := a.Key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, ErrKeys
	}
	return k, nil
}

// labelled adds the label to a name: a description (X.520, attribute 2.5.4.13).
func labelled(name pkix.Name) pkix.Name {
	name.ExtraNames = append(name.ExtraNames,
		pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{2, 5, 4, 13}, Value: Label})
	return name
}

// years returns the dates of a certificate that is made now: clocks may differ by an hour.
func years(n int) (from, until time.Time) {
	from = time.Now().UTC().Truncate(time.Second).Add(-time.Hour)
	return from, from.AddDate(n, 0, 0)
}

// serial is the random number of a certificate.
func serial() (*big.Int, error) { return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)) }

func newKey(c elliptic.Curve) (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(c, rand.Reader) }

// Terms are those of what is issued anew each time: lists and collateral.
type Terms struct {
	AsOf    time.Time
	Valid   time.Duration
	Revoked bool // the platform, or the authority over it, is revoked
}

// DefaultValid is for how long lists and collateral are valid, as those of AMD's and Intel's.
const DefaultValid = 30 * 24 * time.Hour

func (t Terms) dates() (from, until time.Time) {
	from = t.AsOf.UTC().Truncate(time.Second)
	return from, from.Add(t.Valid)
}

func (t Terms) revokes(c *x509.Certificate) []*big.Int {
	if !t.Revoked {
		return nil
	}
	return []*big.Int{c.SerialNumber}
}
