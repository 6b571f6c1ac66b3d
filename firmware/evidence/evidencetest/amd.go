package evidencetest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"sync"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/firmware/pki"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
)

// AMD has the authorities of one line.
type AMD struct {
	Line           kds.Line
	ark, ask, asvk holder
}

// Serial numbers of the authorities.
const (
	SerialARK  = 0x010000
	SerialASK  = 0x010001
	SerialASVK = 0x010101
)

// rsaKey returns one of a few keys: making each takes long, and which it is plays no part.
var rsaKey = func() func(n int) *rsa.PrivateKey {
	var mu sync.Mutex
	keys := map[int]*rsa.PrivateKey{}
	return func(n int) *rsa.PrivateKey {
		mu.Lock()
		defer mu.Unlock()
		if keys[n] == nil {
			k, err := rsa.GenerateKey(rand.Reader, 2048)
			if err != nil {
				panic(err)
			}
			keys[n] = k
		}
		return keys[n]
	}
}()

// amdName is a name as AMD's certificates have them.
func amdName(cn string) pkix.Name {
	return pkix.Name{
		CommonName: cn, Country: []string{"US"}, Locality: []string{"Santa Clara"}, Province: []string{"CA"},
		Organization: []string{"Advanced Micro Devices"}, OrganizationalUnit: []string{"Engineering"},
	}
}

// NewAMD makes the authorities of a line. Those of another number have other keys, and the same
// names and serial numbers.
func NewAMD(t testing.TB, l kds.Line, number int) *AMD {
	t.Helper()
	a := &AMD{Line: l}
	ca := func(key int, parent *holder, cn string, serial int64) holder {
		list := kds.CRLURL(l, kds.VCEK)
		if key == 2 {
			list = kds.CRLURL(l, kds.VLEK)
		}
		return issue(t, rsaKey(3*number+key), parent, &x509.Certificate{
			CRLDistributionPoints: []string{list},
			Subject:               amdName(cn), SerialNumber: big.NewInt(serial), IsCA: true,
			BasicConstraintsValid: true,
			KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
			SignatureAlgorithm:    x509.SHA384WithRSAPSS,
			SubjectKeyId:          []byte{byte(number), byte(key)},
		})
	}
	a.ark = ca(0, nil, "ARK-"+string(l), SerialARK)
	a.ask = ca(1, &a.ark, "SEV-"+string(l), SerialASK)
	a.asvk = ca(2, &a.ark, "SEV-VLEK-"+string(l), SerialASVK)
	return a
}

// RootPEM is the line's authorities, as a file of test roots.
func (a *AMD) RootPEM() []byte { return pki.PEM(a.ark.Cert, a.ask.Cert, a.asvk.Cert) }

// Roots are the authorities of some lines.
func Roots(t testing.TB, lines ...*AMD) *kds.Roots {
	t.Helper()
	var text []byte
	for _, a := range lines {
		text = append(text, a.RootPEM()...)
	}
	r, err := kds.ParseRoots(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// CRL is the line's list of revoked serial numbers, valid for some time around AsOf().
func (a *AMD) CRL(t testing.TB, serials ...int64) []byte {
	t.Helper()
	return revoke(t, a.ark, AsOf().AddDate(0, -1, 0), AsOf().AddDate(0, 1, 0), serials...)
}

// CRLBetween is a list with given dates, and CRLByASK one by the wrong authority.
func (a *AMD) CRLBetween(t testing.TB, from, until time.Time) []byte {
	t.Helper()
	return revoke(t, a.ark, from, until)
}

// CRLByASK is a list that the wrong authority has signed.
func (a *AMD) CRLByASK(t testing.TB) []byte {
	t.Helper()
	return revoke(t, a.ask, AsOf().AddDate(0, -1, 0), AsOf().AddDate(0, 1, 0))
}

// Endorsed is a key that signs reports.
type Endorsed struct {
	Signer kds.Signer
	Line   kds.Line
	TCB    kds.TCB
	HWID   []byte
	Key    *ecdsa.PrivateKey
	Cert   *x509.Certificate
}

// TCB is one that all endorsed keys here are for.
func TCB(l kds.Line) kds.TCB {
	t := kds.TCB{BootLoader: 4, TEE: 0, SNP: 22, Microcode: 213}
	if l == kds.Turin {
		t.FMC = 1
	}
	return t
}

// HWID is a chip's ID.
func HWID(l kds.Line) []byte {
	id := make([]byte, l.HWIDSize())
	for i := range id {
		id[i] = byte(0x30 + i)
	}
	return id
}

// VCEK endorses the key of a chip.
func (a *AMD) VCEK(t testing.TB, change ...func(*x509.Certificate)) *Endorsed {
	t.Helper()
	return a.endorse(t, kds.VCEK, change...)
}

// VLEK endorses the key of a provider.
func (a *AMD) VLEK(t testing.TB, change ...func(*x509.Certificate)) *Endorsed {
	t.Helper()
	return a.endorse(t, kds.VLEK, change...)
}

// EndorsedFor endorses the key of a chip for another TCB.
func (a *AMD) EndorsedFor(t testing.TB, tcb kds.TCB) *Endorsed {
	t.Helper()
	return a.endorseTCB(t, kds.VCEK, tcb)
}

func (a *AMD) endorse(t testing.TB, s kds.Signer, change ...func(*x509.Certificate)) *Endorsed {
	t.Helper()
	return a.endorseTCB(t, s, TCB(a.Line), change...)
}

// OID identifies an extension that AMD defines.
func OID(last ...int) asn1.ObjectIdentifier {
	return append(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}, last...)
}

func (a *AMD) endorseTCB(t testing.TB, s kds.Signer, tcb kds.TCB, change ...func(*x509.Certificate)) *Endorsed {
	t.Helper()
	e := &Endorsed{Signer: s, Line: a.Line, TCB: tcb, Key: ecKey(t, elliptic.P384())}
	parent := &a.ask
	said := &kds.Certificate{Signer: s, Line: a.Line, Product: string(a.Line), TCB: tcb, CSP: "a provider"}
	if s == kds.VLEK {
		parent = &a.asvk
	} else {
		e.HWID = HWID(a.Line)
		said.HWID = e.HWID
	}
	template := &x509.Certificate{
		Subject: amdName("SEV-" + s.String()), SignatureAlgorithm: x509.SHA384WithRSAPSS,
		ExtraExtensions: must(said.Extensions())(t),
	}
	for _, c := range change {
		c(template)
	}
	e.Cert = issue(t, e.Key, parent, template).Cert
	return e
}

// Report is a report that everything is right with, after changes to its bytes before they are
// signed.
func (e *Endorsed) Report(t testing.TB, change ...func(b []byte)) []byte {
	t.Helper()
	raw := e.TCB.Raw(e.Line)
	cpu := map[kds.Line][3]byte{
		kds.Milan: {0x19, 0x01, 0}, kds.Genoa: {0x19, 0x11, 1}, kds.Turin: {0x1a, 0x02, 1},
	}[e.Line]
	build := sev.Build{Major: 1, Minor: 55, Build: 21}
	r := &report.Report{
		Version: 3, GuestSVN: 7, Policy: 0x30000, Algorithm: 1, Platform: report.PlatformAliasCheck,
		SignerInfo:  report.SignerInfo(e.Signer, false, false),
		ReportData:  [64]byte(bytes.Repeat([]byte{0xda}, 64)),
		Measurement: [48]byte(bytes.Repeat([]byte{0x11}, 48)),
		ReportID:    [32]byte(bytes.Repeat([]byte{0x1d}, 32)), ReportIDMA: [32]byte(bytes.Repeat([]byte{0xff}, 32)),
		CurrentTCB: raw, ReportedTCB: raw, CommittedTCB: raw, LaunchTCB: raw,
		Family: cpu[0], Model: cpu[1], Stepping: cpu[2], Current: build, Committed: build,
	}
	copy(r.ChipID[:], e.HWID)
	b := r.Bytes()
	for _, c := range change {
		c(b)
	}
	e.Sign(t, b)
	return b
}

// Sign signs a report's bytes.
func (e *Endorsed) Sign(t testing.TB, b []byte) {
	t.Helper()
	if err := report.Sign(b, e.Key); err != nil {
		t.Fatal(err)
	}
}
