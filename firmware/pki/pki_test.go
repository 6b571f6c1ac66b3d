package pki_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/firmware/pki"
	"github.com/vmlatch/vmlatch/firmware/refusal"
)

// authority is a certificate and its key.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

var from, until = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2026, 7, 1, 0, 0, 0, 0, time.UTC)

// newAuthority makes one that is signed by an issuer, or by itself.
func newAuthority(t testing.TB, name string, serial int64, issuer *authority) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, NotBefore: from, NotAfter: until,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCRLSign, SubjectKeyId: []byte(name),
	}
	signer := key
	parent := c
	if issuer != nil {
		signer, parent = issuer.key, issuer.cert
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{key, cert}
}

func (a *authority) list(t testing.TB, revoked ...int64) *x509.RevocationList {
	t.Helper()
	l := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: from, NextUpdate: until}
	for _, n := range revoked {
		l.RevokedCertificateEntries = append(l.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: big.NewInt(n), RevocationTime: from})
	}
	der, err := x509.CreateRevocationList(rand.Reader, l, a.cert, a.key)
	if err != nil {
		t.Fatal(err)
	}
	x, err := pki.ParseCRL(der)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func want(t *testing.T, what string, err error, reason refusal.Reason) {
	t.Helper()
	var got refusal.Reason
	if r := refusal.Of(err); r != nil {
		got = r.Reason
	}
	if got != reason || reason == "" && err != nil {
		t.Errorf("%s: %v, want %q", what, err, reason)
	}
}

// TestChains: who signed what, whatever names say, and what a list revokes.
func TestChains(t *testing.T) {
	root := newAuthority(t, "root", 1, nil)
	impostor := newAuthority(t, "root", 1, nil)
	leaf := newAuthority(t, "leaf", 7, root)
	want(t, "its issuer", pki.SignedBy(leaf.cert, root.cert), "")
	want(t, "another of its issuer's name", pki.SignedBy(leaf.cert, impostor.cert), refusal.Chain)
	want(t, "its own", pki.SignedBy(root.cert, root.cert), "")
	list := root.list(t, 5, 9)
	want(t, "a list of its issuer", pki.CRLSigned(list, root.cert), "")
	want(t, "a list of another's key", pki.CRLSigned(list, impostor.cert), refusal.CRLSignature)
	want(t, "a list of another's name", pki.CRLSigned(list, leaf.cert), refusal.CRLSignature)
	want(t, "not revoked", pki.NotListed(list, root.cert, leaf.cert), "")
	want(t, "revoked", pki.NotListed(root.list(t, 5, 7), root.cert, leaf.cert), refusal.Revoked)
	_, err := pki.ParseCRL([]byte("list"))
	want(t, "noise", err, refusal.CRLMalformed)
}

// TestDates: both ends belong to the time, one second beyond does not; and the remedy for what
// is not valid yet is not a newer one.
func TestDates(t *testing.T) {
	a := newAuthority(t, "root", 1, nil)
	list := a.list(t)
	for _, x := range []struct {
		at    time.Time
		stale time.Duration
		cert  refusal.Reason
		list  refusal.Reason
	}{
		{from, 0, "", ""},
		{until, 0, "", ""},
		{from.Add(-time.Second), 0, refusal.CertExpired, refusal.CRLExpired},
		{until.Add(time.Second), 0, refusal.CertExpired, refusal.CRLExpired},
		{until.Add(time.Hour), time.Hour, refusal.CertExpired, ""},
		{until.Add(time.Hour + time.Second), time.Hour, refusal.CertExpired, refusal.CRLExpired},
		{from.Add(-time.Second), time.Hour, refusal.CertExpired, refusal.CRLExpired},
	} {
		what := x.at.Format(time.RFC3339) + ", stale " + x.stale.String()
		want(t, "certificate at "+what, pki.ValidAt(x.at, a.cert), x.cert)
		want(t, "list at "+what, pki.CRLValidAt(list, x.at, x.stale), x.list)
	}
	early := refusal.Of(pki.ValidAt(from.Add(-time.Second), a.cert))
	if !strings.Contains(early.Fix, "later") {
		t.Errorf("what is not valid yet: %q helps, want a later time", early.Fix)
	}
}

func TestParsePEM(t *testing.T) {
	der := newAuthority(t, "root", 1, nil).cert.Raw
	block := func(kind string, b []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}))
	}
	one := block("CERTIFICATE", der)
	for name, x := range map[string]struct {
		text string
		n    int // 0 for an error
	}{
		"one": {one, 1}, "text before, between and behind": {"a\n" + one + "b\n" + one + "c\n", 2},
		"eight": {strings.Repeat(one, 8), 8}, "nine": {strings.Repeat(one, 9), 0},
		"nothing": {"", 0}, "text": {"hello", 0}, "a key": {one + block("PRIVATE KEY", der), 0},
		"noise": {block("CERTIFICATE", []byte("x")), 0}, "cut": {one[:len(one)/2], 0},
	} {
		list, err := pki.ParsePEM([]byte(x.text))
		if len(list) != x.n || (err != nil) != (x.n == 0) {
			t.Errorf("%s: %d certificates, %v, want %d", name, len(list), err, x.n)
		}
	}
}

// TestVerifyRaw: r and s have exactly the length of the curve's numbers.
func TestVerifyRaw(t *testing.T) {
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		hash := sha256.Sum256([]byte("text"))
		r, s, err := ecdsa.Sign(rand.Reader, key, hash[:])
		if err != nil {
			t.Fatal(err)
		}
		n := (curve.Params().BitSize + 7) / 8
		good := append(r.FillBytes(make([]byte, n)), s.FillBytes(make([]byte, n))...)
		if !pki.VerifyRaw(&key.PublicKey, hash[:], good) {
			t.Errorf("P-%d: a good signature is refused", curve.Params().BitSize)
		}
		other := sha256.Sum256([]byte("other text"))
		for name, bad := range map[string][]byte{
			"zeros": make([]byte, 2*n), "nothing": nil, "shorter": good[:2*n-1], "longer": append(good, 0),
			"swapped": append(s.FillBytes(make([]byte, n)), r.FillBytes(make([]byte, n))...),
		} {
			if pki.VerifyRaw(&key.PublicKey, hash[:], bad) {
				t.Errorf("P-%d: %s is accepted", curve.Params().BitSize, name)
			}
		}
		if pki.VerifyRaw(&key.PublicKey, other[:], good) {
			t.Errorf("P-%d: a signature of another text is accepted", curve.Params().BitSize)
		}
	}
}

func FuzzParsePEM(f *testing.F) {
	a := newAuthority(f, "root", 1, nil)
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
	f.Add(a.list(f, 3).Raw)
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = pki.ParsePEM(b)
		_, _ = pki.ParseCRL(b)
	})
}
