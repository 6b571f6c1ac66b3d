package attest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"path/filepath"
	"sync"

	"github.com/vmlatch/vmlatch/firmware/pki"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
	"github.com/vmlatch/vmlatch/firmware/swtee/internal/keyfile"
)

// Line is the line of processors to which the emulated one belongs, an EPYC 9004.
const Line = kds.Genoa

// The processor as reports describe it.
const (
	product                 = "Genoa-B1"
	family, model, stepping = 0x19, 0x11, 1
	provider                = "swtee"
)

// TCBs of the platform. They are invented.
func currentTCB() kds.TCB { return kds.TCB{BootLoader: 10, SNP: 23, Microcode: 84} }
func behindTCB() kds.TCB  { return kds.TCB{BootLoader: 9, SNP: 14, Microcode: 72} }

// Key names a key that signs reports.
type Key int

// Keys of the platform.
const (
	VCEK    Key = iota // of the chip, with its present firmware
	OldVCEK            // of the chip, with firmware that should have been updated
	VLEK               // of a provider
	keyCount
)

// amdFile is the file with the keys. Those of the intermediate authorities have signed what they
// are to sign, and are not kept.
type amdFile struct {
	About string           `json:"about"`
	Chip  []byte           `json:"chip-id"`
	ARK   stored           `json:"ark"`
	ASK   stored           `json:"ask"`
	ASVK  stored           `json:"asvk"`
	Keys  [keyCount]stored `json:"endorsed"` // by Key
}

// AMD are the authorities over the keys of an emulated SEV-SNP processor, and these keys.
type AMD struct {
	kept
	file           *amdFile
	ark, ask, asvk *x509.Certificate
	keys           [keyCount]func() (*ecdsa.PrivateKey, error)
}

// OpenAMD reads the authorities of a platform, making them first if there are none, which takes
// seconds. The chip's ID is 64 bytes.
func OpenAMD(dir string, chip []byte) (*AMD, error) {
	f, err := keyfile.Open(dir, FileAMD, func() (*amdFile, error) { return newAMD(chip) })
	if err != nil {
		return nil, err
	}
	a := &AMD{file: f, kept: kept{filepath.Join(dir, FileAMD)}}
	err = a.certificates(map[*stored]**x509.Certificate{&f.ARK: &a.ark, &f.ASK: &a.ask, &f.ASVK: &a.asvk})
	if err == nil && len(f.Chip) != Line.HWIDSize() {
		err = a.damaged(fmt.Errorf("the chip's ID has %d bytes", len(f.Chip)))
	}
	for k := range a.keys {
		a.keys[k] = sync.OnceValues(func() (*ecdsa.PrivateKey, error) { return ecdsaKey(a.signer(&f.Keys[k])) })
	}
	return a, err
}

func amdName(cn string) pkix.Name {
	return labelled(pkix.Name{
		CommonName: cn, Country: []string{"US"}, Locality: []string{"Santa Clara"}, Province: []string{"CA"},
		Organization: []string{"Advanced Micro Devices"}, OrganizationalUnit: []string{"Engineering"},
	})
}

// rsaBits is the length of the authorities' keys, as at AMD.
const rsaBits = 4096

// rsaKeys makes keys at the same time.
func rsaKeys(n int) ([]*rsa.PrivateKey, error) {
	keys, errs := make([]*rsa.PrivateKey, n), make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { keys[i], errs[i] = rsa.GenerateKey(rand.Reader, rsaBits) })
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return keys, nil
}

func newAMD(chip []byte) (*amdFile, error) {
	keys, err := rsaKeys(3)
	if err != nil {
		return nil, err
	}
	authority := func(cn string, s kds.Signer, number int64) *x509.Certificate {
		t := &x509.Certificate{
			Subject: amdName(cn), SerialNumber: big.NewInt(number), IsCA: true, BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SignatureAlgorithm: x509.SHA384WithRSAPSS,
			CRLDistributionPoints: []string{kds.CRLURL(Line, s)},
		}
		t.NotBefore, t.NotAfter = years(25)
		return t
	}
	ark, err := pki.SelfSigned(keys[0], authority("ARK-"+string(Line), kds.VCEK, 0x010000))
	if err != nil {
		return nil, err
	}
	ask, err := ark.Issue(keys[1], authority("SEV-"+string(Line), kds.VCEK, 0x010001))
	if err != nil {
		return nil, err
	}
	asvk, err := ark.Issue(keys[2], authority("SEV-VLEK-"+string(Line), kds.VLEK, 0x010101))
	if err != nil {
		return nil, err
	}
	f := &amdFile{About: about, Chip: chip}
	if f.ARK, err = store(ark, true); err != nil {
		return nil, err
	}
	f.ASK.Cert, f.ASVK.Cert = ask.Cert.Raw, asvk.Cert.Raw
	for k := range keyCount {
		e, err := endorse(k, chip, ask, asvk)
		if err != nil {
			return nil, err
		}
		if f.Keys[k], err = store(e, true); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// endorse makes one of the keys that sign reports.
func endorse(k Key, chip []byte, ask, asvk *pki.Authority) (*pki.Authority, error) {
	above := ask
	said := &kds.Certificate{Signer: kds.VCEK, Line: Line, Product: product, TCB: currentTCB(), HWID: chip}
	switch k {
	case OldVCEK:
		said.TCB = behindTCB()
	case VLEK:
		above, said.Signer, said.HWID, said.CSP, said.Product = asvk, kds.VLEK, nil, provider, string(Line)
	}
	extensions, err := said.Extensions()
	if err != nil {
		return nil, err
	}
	key, err := newKey(elliptic.P384())
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		Subject: amdName("SEV-" + said.Signer.String()), SerialNumber: big.NewInt(0),
		SignatureAlgorithm: x509.SHA384WithRSAPSS, ExtraExtensions: extensions,
	}
	t.NotBefore, t.NotAfter = years(7)
	return above.Issue(key, t)
}

// How says how a report is signed.
type How struct {
	Key     Key
	Masked  bool // the host keeps the chip's ID back
	Version uint32
}

// Versions of reports that the platform writes.
const (
	ReportVersion    = 3
	ReportVersionMit = 5 // with mitigation vectors
)

// Report fills in what a platform says of itself, and signs. The rest is the guest's.
func (a *AMD) Report(r report.Report, how How) ([]byte, error) {
	key, err := a.keys[how.Key]()
	if err != nil {
		return nil, err
	}
	signer, tcb := kds.VCEK, currentTCB()
	switch how.Key {
	case OldVCEK:
		tcb = behindTCB()
	case VLEK:
		signer = kds.VLEK
	}
	r.Version, r.Algorithm = how.Version, 1
	if r.Version >= ReportVersionMit {
		r.LaunchMit, r.CurrentMit = 1, 1
	}
	raw := tcb.Raw(Line)
	r.CurrentTCB, r.ReportedTCB, r.CommittedTCB, r.LaunchTCB = raw, raw, raw, raw
	r.Platform = report.PlatformSMT | report.PlatformAliasCheck
	r.SignerInfo |= report.SignerInfo(signer, false, how.Masked)
	r.Family, r.Model, r.Stepping = family, model, stepping
	if !how.Masked {
		copy(r.ChipID[:], a.file.Chip)
	}
	b := r.Bytes()
	return b, report.Sign(b, key)
}

// RootPEM are the authorities, as owners name them to trust them.
func (a *AMD) RootPEM() []byte { return pki.PEM(a.ark, a.ask, a.asvk) }

// Endorsement is the certificate of a key, in DER: what AMD's key server has.
func (a *AMD) Endorsement(k Key) []byte { return a.file.Keys[k].Cert }

// CRL is the list of revoked authorities, in DER. If it revokes, it names those over all keys.
func (a *AMD) CRL(t Terms) ([]byte, error) {
	ark, err := a.signer(&a.file.ARK)
	if err != nil {
		return nil, err
	}
	from, until := t.dates()
	return ark.Revoke(from, until, append(t.revokes(a.ask), t.revokes(a.asvk)...)...)
}
