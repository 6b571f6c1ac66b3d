package attest

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/vmlatch/vmlatch/firmware/pki"
	"github.com/vmlatch/vmlatch/firmware/swtee/internal/keyfile"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
	"github.com/vmlatch/vmlatch/firmware/tdx/quote"
)

// What the emulated platform says of itself. It is invented.
var (
	fmspc = []byte{0xee, 0x77, 0xee, 0, 0, 0}
	pceid = []byte{0, 0}
	svns  = [16]uint8{5, 5, 2, 2, 2, 1, 0, 3}
)

const (
	pceSVN      = 11
	moduleMajor = 1 // TDX module 1.5
	moduleSVN   = 4
	oldModule   = 2 // one that should have been updated
	loaderSVN   = 5
	qeSVN       = 8
	evaluation  = 18
	advisory    = "INTEL-SA-99999"
)

// intelFile is the file with the keys. That of the platform's authority is needed for its list.
type intelFile struct {
	About       string `json:"about"`
	Root        stored `json:"root"`
	CA          stored `json:"pck-ca"`
	TCB         stored `json:"tcb-signing"`
	PCK         stored `json:"pck"`
	Attestation []byte `json:"attestation-key"` // PKCS #8
}

// Intel are the authorities over the keys of an emulated TDX platform, and these keys.
type Intel struct {
	kept
	file               *intelFile
	root, ca, tcb, pck *x509.Certificate
	keys               func() (intelKeys, error)
}

type intelKeys struct{ pck, attestation *ecdsa.PrivateKey }

// OpenIntel reads the authorities of a platform, making them first if there are none.
func OpenIntel(dir string) (*Intel, error) {
	f, err := keyfile.Open(dir, FileIntel, newIntel)
	if err != nil {
		return nil, err
	}
	i := &Intel{file: f, kept: kept{filepath.Join(dir, FileIntel)}}
	i.keys = sync.OnceValues(i.readKeys)
	err = i.certificates(map[*stored]**x509.Certificate{
		&f.Root: &i.root, &f.CA: &i.ca, &f.TCB: &i.tcb, &f.PCK: &i.pck,
	})
	return i, err
}

func (i *Intel) readKeys() (k intelKeys, err error) {
	if k.pck, err = ecdsaKey(i.signer(&i.file.PCK)); err != nil {
		return k, err
	}
	key, err := x509.ParsePKCS8PrivateKey(i.file.Attestation)
	var ok bool
	if k.attestation, ok = key.(*ecdsa.PrivateKey); !ok && err == nil {
		err = ErrKeys
	}
	if err != nil {
		return k, i.damaged(err)
	}
	return k, nil
}

func newIntel() (*intelFile, error) {
	var failed error
	issue := func(parent *pki.Authority, cn string, ca bool, valid int, more ...pkix.Extension) *pki.Authority {
		key, err := newKey(elliptic.P256())
		number, err2 := serial()
		if failed != nil || err != nil || err2 != nil {
			failed = cmp.Or(failed, err, err2)
			return nil
		}
		t := &x509.Certificate{
			Subject:      pkix.Name{CommonName: cn, Organization: []string{Label}, Country: []string{"US"}},
			SerialNumber: number, BasicConstraintsValid: true, IsCA: ca, ExtraExtensions: more,
			KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment,
			CRLDistributionPoints: []string{"https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"},
		}
		if ca {
			t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
		}
		sum := sha256.Sum256([]byte(cn))
		t.SubjectKeyId = sum[:20]
		t.NotBefore, t.NotAfter = years(valid)
		sign := pki.SelfSigned
		if parent != nil {
			sign = parent.Issue
		}
		a, err := sign(key, t)
		failed = err
		return a
	}
	said := &collateral.PCK{
		PPID: make([]byte, 16), SVN: svns, PCESVN: pceSVN, CPUSVN: svns[:], PCEID: pceid, FMSPC: fmspc,
	}
	said.InstanceID = make([]byte, 16) // a platform under the Platform CA has one
	_, _ = rand.Read(said.PPID)        // never fails (crypto/rand)
	_, _ = rand.Read(said.InstanceID)
	ext, err := said.Extension()
	if err != nil {
		return nil, err
	}
	root := issue(nil, collateral.NameRoot, true, 30)
	ca := issue(root, "Intel SGX PCK Platform CA", true, 15)
	tcb := issue(root, "Intel SGX TCB Signing", false, 7)
	pck := issue(ca, "Intel SGX PCK Certificate", false, 7, ext)
	attestation, err := newKey(elliptic.P256())
	if err := cmp.Or(failed, err); err != nil {
		return nil, err
	}
	f := &intelFile{About: about}
	for _, s := range []struct {
		from *pki.Authority
		to   *stored
	}{{root, &f.Root}, {ca, &f.CA}, {tcb, &f.TCB}, {pck, &f.PCK}} {
		if *s.to, err = store(s.from, true); err != nil {
			return nil, err
		}
	}
	f.Attestation, err = x509.MarshalPKCS8PrivateKey(attestation)
	return f, err
}

// QuoteHow says how a quote is made.
type QuoteHow struct {
	Behind  bool // the module should have been updated
	Version uint16
}

// QuoteVersion and QuoteVersion15 are the versions of quotes that the platform makes: 5 brings
// what TDX 1.5 adds.
const (
	QuoteVersion   = 4
	QuoteVersion15 = 5
)

// Quote fills in what a platform says of itself, and signs. The rest is the trust domain's.
func (i *Intel) Quote(b quote.Body, how QuoteHow) ([]byte, error) {
	keys, err := i.keys()
	if err != nil {
		return nil, err
	}
	b.TEETCBSVN = [16]byte{moduleSVN, moduleMajor, loaderSVN}
	if how.Behind {
		b.TEETCBSVN[0] = oldModule
	}
	b.TEETCBSVN2 = b.TEETCBSVN
	b.MRSEAM = sha512.Sum384([]byte("the TDX module of swtee"))
	qe := &collateral.QEReport{Attributes: [16]byte{0x11}, MRSigner: collateral.TDQESigner(), ProdID: 2, SVN: qeSVN}
	parts := &quote.Parts{
		Header: quote.Header(how.Version), Body: b.Bytes(how.Version == QuoteVersion15),
		QEReport: quote.QEReport(svns, qe), AuthData: []byte(Label), PCKChain: pki.PEM(i.pck, i.ca, i.root),
	}
	point, err := quote.Point(&keys.attestation.PublicKey)
	if err != nil {
		return nil, err
	}
	parts.Vouch(point)
	return parts.Sign(keys.attestation, keys.pck)
}

// RootPEM is the root, as owners name it to trust it.
func (i *Intel) RootPEM() []byte { return pki.PEM(i.root) }

// object is a JSON object.
type object = map[string]any

func level(tcb object, status string, advisories ...string) object {
	l := object{"tcb": tcb, "tcbDate": "2025-05-14T00:00:00Z", "tcbStatus": status}
	if advisories != nil {
		l["advisoryIDs"] = advisories
	}
	return l
}

// Collateral is what Intel's service publishes about the platform.
func (i *Intel) Collateral(t Terms) (*collateral.Collateral, error) {
	root, err1 := i.signer(&i.file.Root)
	ca, err2 := i.signer(&i.file.CA)
	signer, err3 := ecdsaKey(i.signer(&i.file.TCB))
	if err := cmp.Or(err1, err2, err3); err != nil {
		return nil, err
	}
	from, until := t.dates()
	chain := pki.PEM(i.tcb, i.root)
	c := &collateral.Collateral{TCBInfoChain: chain, QEChain: chain, PCKCRLChain: pki.PEM(i.ca, i.root)}
	var errs [4]error
	c.RootCRL, errs[0] = root.Revoke(from, until)
	c.PCKCRL, errs[1] = ca.Revoke(from, until, t.revokes(i.pck)...)
	sign := func(body object) (text, sig []byte, err error) {
		body["issueDate"], body["nextUpdate"] = from.Format(time.RFC3339), until.Format(time.RFC3339)
		body["tcbEvaluationDataNumber"] = evaluation
		if text, err = json.Marshal(body); err != nil {
			return nil, nil, err
		}
		sig, err = pki.SignRaw(signer, text)
		return text, sig, err
	}
	c.TCBInfo, c.TCBInfoSig, errs[2] = sign(tcbInfo())
	c.QE, c.QESig, errs[3] = sign(qeIdentity())
	return c, cmp.Or(errs[:]...)
}

func zeros(n int) string { return hex.EncodeToString(make([]byte, n)) }

func components(versions []uint8) (list []object) {
	for _, n := range versions {
		list = append(list, object{"svn": n})
	}
	return list
}

func tcbInfo() object {
	module := object{"mrsigner": zeros(48), "attributes": zeros(8), "attributesMask": "FFFFFFFFFFFFFFFF"}
	identity := object{
		"id": fmt.Sprintf("TDX_%02d", moduleMajor), "mrsigner": zeros(48), "attributes": zeros(8),
		"attributesMask": "FFFFFFFFFFFFFFFF",
		"tcbLevels": []object{
			level(object{"isvsvn": moduleSVN}, "UpToDate"), level(object{"isvsvn": oldModule}, "OutOfDate", advisory),
		},
	}
	tdx := [16]uint8{moduleSVN, 0, loaderSVN}
	return object{
		"id": "TDX", "version": 3, "fmspc": hex.EncodeToString(fmspc), "pceId": hex.EncodeToString(pceid),
		"tcbType": 0, "tdxModule": module, "tdxModuleIdentities": []object{identity},
		"tcbLevels": []object{level(object{
			"sgxtcbcomponents": components(svns[:]), "pcesvn": pceSVN, "tdxtcbcomponents": components(tdx[:]),
		}, "UpToDate")},
	}
}

func qeIdentity() object {
	return object{
		"id": "TD_QE", "version": 2, "miscselect": zeros(4), "miscselectMask": "FFFFFFFF",
		"attributes": "11" + zeros(15), "attributesMask": "FBFFFFFFFFFFFFFF" + zeros(8),
		"mrsigner": hex.EncodeToString(collateral.TDQESigner()), "isvprodid": 2,
		"tcbLevels": []object{level(object{"isvsvn": qeSVN}, "UpToDate")},
	}
}
