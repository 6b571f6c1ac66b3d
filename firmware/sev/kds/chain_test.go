package kds_test

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence/evidencetest"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
)

func reason(err error) refusal.Reason {
	if r := refusal.Of(err); r != nil {
		return r.Reason
	}
	if err != nil {
		return refusal.Reason(err.Error())
	}
	return ""
}

// TestParseCertificate: all that AMD says of a key is read.
func TestParseCertificate(t *testing.T) {
	for _, l := range kds.Lines() {
		a := evidencetest.NewAMD(t, l, 0)
		tcb := kds.TCB{BootLoader: 1, TEE: 2, SNP: 3, Microcode: 255}
		if l == kds.Turin {
			tcb.FMC = 5
		}
		e := a.EndorsedFor(t, tcb)
		c, err := kds.ParseCertificate(e.Cert.Raw)
		if err != nil {
			t.Fatal(err)
		}
		if c.Signer != kds.VCEK || c.Line != l || c.Product != string(l) || c.TCB != tcb || c.CSP != "" ||
			!bytes.Equal(c.HWID, evidencetest.HWID(l)) || !c.Key.Equal(e.Cert.PublicKey) {
			t.Errorf("%s: %+v", l, c)
		}
		v, err := kds.ParseCertificate(a.VLEK(t).Cert.Raw)
		if err != nil || v.Signer != kds.VLEK || v.CSP != "a provider" || v.HWID != nil {
			t.Errorf("VLEK of %s: %+v, %v", l, v, err)
		}
	}
}

// TestCertificates: what differs from the endorsement certificates that AMD makes is refused.
func TestCertificates(t *testing.T) {
	drop := func(id asn1.ObjectIdentifier) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			i := slices.IndexFunc(c.ExtraExtensions, func(e pkix.Extension) bool { return e.Id.Equal(id) })
			c.ExtraExtensions = slices.Delete(c.ExtraExtensions, i, i+1)
		}
	}
	set := func(id asn1.ObjectIdentifier, value []byte) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			i := slices.IndexFunc(c.ExtraExtensions, func(e pkix.Extension) bool { return e.Id.Equal(id) })
			c.ExtraExtensions[i].Value = value
		}
	}
	add := func(id asn1.ObjectIdentifier, value []byte) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: id, Value: value})
		}
	}
	a := evidencetest.NewAMD(t, kds.Milan, 0)
	for name, c := range map[string]struct {
		change func(*x509.Certificate)
		want   refusal.Reason
	}{
		"subject":           {func(c *x509.Certificate) { c.Subject.CommonName = "SEV-XCEK" }, refusal.CertProfile},
		"no product":        {drop(evidencetest.OID(2)), refusal.CertProfile},
		"another product":   {set(evidencetest.OID(2), []byte("\x16\x06Venice")), refusal.CertProfile},
		"another line":      {set(evidencetest.OID(2), []byte("\x16\x05Genoa")), refusal.CertProfile},
		"with a stepping":   {set(evidencetest.OID(2), []byte("\x16\x08Milan-B1")), ""},
		"product as UTF-8":  {set(evidencetest.OID(2), []byte("\x0c\x05Milan")), ""},
		"no microcode":      {drop(evidencetest.OID(3, 8)), refusal.CertProfile},
		"microcode 256":     {set(evidencetest.OID(3, 8), []byte{2, 2, 1, 0}), refusal.CertProfile},
		"negative":          {set(evidencetest.OID(3, 8), []byte{2, 1, 0x80}), refusal.CertProfile},
		"number with tail":  {set(evidencetest.OID(3, 8), []byte{2, 1, 5, 0}), refusal.CertProfile},
		"no chip":           {drop(evidencetest.OID(4)), refusal.CertProfile},
		"short chip":        {set(evidencetest.OID(4), make([]byte, 63)), refusal.CertProfile},
		"chip in a string":  {set(evidencetest.OID(4), append([]byte{4, 64}, evidencetest.HWID(kds.Milan)...)), ""},
		"structure version": {set(evidencetest.OID(1), []byte{2, 1, 2}), refusal.CertProfile},
		"microcode 255":     {set(evidencetest.OID(3, 8), []byte{2, 2, 0, 255}), ""},
		"not a number":      {set(evidencetest.OID(3, 8), []byte{4, 1, 5}), refusal.CertProfile},
		"structure 1":       {set(evidencetest.OID(1), []byte{2, 1, 1}), ""},
		"product not text":  {set(evidencetest.OID(2), []byte{2, 1, 1}), refusal.CertProfile},
		"product with tail": {set(evidencetest.OID(2), []byte("\x16\x05Milan\x00")), refusal.CertProfile},
		"chip in a string of another length": {
			set(evidencetest.OID(4), append([]byte{4, 63}, evidencetest.HWID(kds.Milan)...)), refusal.CertProfile,
		},
		"another string": {
			set(evidencetest.OID(4), append([]byte{3, 64}, evidencetest.HWID(kds.Milan)...)), refusal.CertProfile,
		},
		"provider of a VCEK":     {add(evidencetest.OID(5), []byte("\x16\x01x")), refusal.CertProfile},
		"an extension under AMD": {add(evidencetest.OID(9, 9), []byte("x")), ""},
		"another's extension":    {add(asn1.ObjectIdentifier{1, 2, 3}, []byte("x")), ""},
	} {
		if _, err := kds.ParseCertificate(a.VCEK(t, c.change).Cert.Raw); reason(err) != c.want {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	for name, c := range map[string]struct {
		change func(*x509.Certificate)
		want   refusal.Reason
	}{
		"chip of a VLEK": {add(evidencetest.OID(4), evidencetest.HWID(kds.Milan)), refusal.CertProfile},
		"no provider":    {drop(evidencetest.OID(5)), refusal.CertProfile},
		"as a VCEK":      {func(c *x509.Certificate) { c.Subject.CommonName = "SEV-VCEK" }, refusal.CertProfile},
	} {
		if _, err := kds.ParseCertificate(a.VLEK(t, c.change).Cert.Raw); reason(err) != c.want {
			t.Errorf("VLEK, %s: %v, want %q", name, err, c.want)
		}
	}
	for name, der := range map[string][]byte{
		"none": nil, "noise": []byte("no certificate"), "an authority": a.RootPEM(),
	} {
		if _, err := kds.ParseCertificate(der); reason(err) != refusal.CertProfile {
			t.Errorf("%s: %v, want %s", name, err, refusal.CertProfile)
		}
	}
}

// TestChain: a certificate leads to the root of its own line, by its own authority, while all
// are valid.
func TestChain(t *testing.T) {
	milan, genoa := evidencetest.NewAMD(t, kds.Milan, 0), evidencetest.NewAMD(t, kds.Genoa, 0)
	other := evidencetest.NewAMD(t, kds.Milan, 1)
	roots := evidencetest.Roots(t, milan)
	at := evidencetest.AsOf()
	parse := func(e *evidencetest.Endorsed) *kds.Certificate {
		c, err := kds.ParseCertificate(e.Cert.Raw)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	vcek := parse(milan.VCEK(t))
	for name, x := range map[string]struct {
		cert *kds.Certificate
		at   time.Time
		want refusal.Reason
	}{
		"VCEK":              {vcek, at, ""},
		"VLEK":              {parse(milan.VLEK(t)), at, ""},
		"of another root":   {parse(other.VCEK(t)), at, refusal.Chain},
		"of a line without": {parse(genoa.VCEK(t)), at, refusal.Chain},
		"too early":         {vcek, evidencetest.Begin().Add(-time.Second), refusal.CertExpired},
		"at first":          {vcek, evidencetest.Begin(), ""},
		"at last":           {vcek, evidencetest.End(), ""},
		"too late":          {vcek, evidencetest.End().Add(time.Second), refusal.CertExpired},
	} {
		if err := roots.Chain(x.cert, x.at); reason(err) != x.want {
			t.Errorf("%s: %v, want %q", name, err, x.want)
		}
	}
	if !roots.Expires(vcek).Equal(evidencetest.End()) {
		t.Errorf("the chain expires at %v", roots.Expires(vcek))
	}
	if !roots.Has(kds.Milan) || roots.Has(kds.Genoa) || roots.Names() != "ARK-Milan" {
		t.Errorf("the roots are %s", roots.Names())
	}
	for name, x := range map[string]struct {
		der            []byte
		signed, listed refusal.Reason
	}{
		"of its line":     {milan.CRL(t), "", ""},
		"revokes the ASK": {milan.CRL(t, evidencetest.SerialASK), "", refusal.Revoked},
		"revokes the ARK": {milan.CRL(t, evidencetest.SerialARK), "", refusal.Revoked},
		"another's ASVK":  {milan.CRL(t, evidencetest.SerialASVK), "", ""},
		"of another root": {other.CRL(t), refusal.CRLSignature, refusal.CRLSignature},
		"of another line": {genoa.CRL(t), refusal.Chain, refusal.CRLSignature},
		"by the ASK":      {milan.CRLByASK(t), refusal.Chain, refusal.CRLSignature},
	} {
		crl, err := kds.ParseCRL(x.der)
		if err != nil {
			t.Fatal(err)
		}
		if err := roots.Signed(crl); reason(err) != x.signed {
			t.Errorf("list %s: signed: %v, want %q", name, err, x.signed)
		}
		if err := roots.NotRevoked(vcek, crl); reason(err) != x.listed {
			t.Errorf("list %s: %v, want %q", name, err, x.listed)
		}
	}
	if _, err := kds.ParseCRL([]byte("noise")); reason(err) != refusal.CRLMalformed {
		t.Errorf("noise: %v", err)
	}
	if got := (kds.TCB{FMC: 9, SNP: 3}).Text(kds.Milan); bytes.Contains([]byte(got), []byte("fmc")) {
		t.Errorf("Milan has %q", got)
	}
}
