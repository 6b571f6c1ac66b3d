package evidencetest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/pki"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
	"github.com/vmlatch/vmlatch/firmware/tdx/quote"
)

// Intel has the authorities above platforms that run trust domains.
type Intel struct {
	root, platform, processor, tcb holder
}

// Serial numbers.
const (
	SerialPlatformCA = 0x201
	SerialPCK        = 0x301
	SerialTCBSigning = 0x401
)

// NewIntel makes the authorities.
func NewIntel(t testing.TB) *Intel {
	t.Helper()
	i := &Intel{}
	ca := func(parent *holder, cn string, serial int64) holder {
		return issue(t, ecKey(t, elliptic.P256()), parent, &x509.Certificate{
			Subject: named(cn), SerialNumber: big.NewInt(serial), IsCA: true, BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte(cn),
			CRLDistributionPoints: []string{"https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"},
		})
	}
	i.root = ca(nil, "Intel SGX Root CA", 0x101)
	i.platform = ca(&i.root, "Intel SGX PCK Platform CA", SerialPlatformCA)
	i.processor = ca(&i.root, "Intel SGX PCK Processor CA", 0x202)
	i.tcb = issue(t, ecKey(t, elliptic.P256()), &i.root, &x509.Certificate{
		Subject: named("Intel SGX TCB Signing"), SerialNumber: big.NewInt(SerialTCBSigning),
	})
	return i
}

// RootPEM is the root, as a file of a test root.
func (i *Intel) RootPEM() []byte { return i.root.pem() }

// Root is the root.
func (i *Intel) Root(t testing.TB) *collateral.Root {
	t.Helper()
	r, err := collateral.ParseRoot(i.RootPEM())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// FMSPC is the family of the platform that quotes are of.
func FMSPC() []byte { return []byte{0x90, 0xc0, 0x6f, 0, 0, 0} }

// PPID is the name of that platform.
func PPID() []byte { return bytes.Repeat([]byte{0x99}, 16) }

// Platform is a platform with the key that Intel certifies.
type Platform struct {
	pck       holder
	ca        holder
	root      holder
	SVN       uint8 // of each SGX component
	PCESVN    uint16
	ChainNote []byte
}

// Change alters a certificate before it is signed.
type Change = func(*x509.Certificate)

// Platform certifies a platform, whose security versions are all 5; of one package or of several.
func (i *Intel) Platform(t testing.TB, several bool, change ...Change) *Platform {
	t.Helper()
	p := &Platform{ca: i.processor, root: i.root, SVN: 5, PCESVN: 11}
	if several {
		p.ca = i.platform
	}
	ext := p.extension(t, several)
	template := &x509.Certificate{
		Subject: named("Intel SGX PCK Certificate"), SerialNumber: big.NewInt(SerialPCK),
		ExtraExtensions: []pkix.Extension{ext}, BasicConstraintsValid: true, SubjectKeyId: []byte("PCK"),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment,
		CRLDistributionPoints: []string{
			"https://api.trustedservices.intel.com/sgx/certification/v4/pckcrl?ca=platform&encoding=der",
		},
	}
	for _, c := range change {
		c(template)
	}
	p.pck = issue(t, ecKey(t, elliptic.P256()), &p.ca, template)
	return p
}

func (p *Platform) extension(t testing.TB, several bool) pkix.Extension {
	t.Helper()
	said := &collateral.PCK{
		PPID: PPID(), PCESVN: p.PCESVN, CPUSVN: bytes.Repeat([]byte{p.SVN}, 16), PCEID: []byte{0, 0}, FMSPC: FMSPC(),
	}
	for i := range said.SVN {
		said.SVN[i] = p.SVN
	}
	if several {
		said.InstanceID = bytes.Repeat([]byte{0x77}, 16)
	}
	return must(said.Extension())(t)
}

// signerQE is the signer of the quoting enclave.
func signerQE() []byte { return collateral.TDQESigner() }

// QuoteParts are what a quote is made of, for changes before each is signed.
type QuoteParts struct {
	Version  uint16
	Is15     bool
	Header   []byte
	Body     []byte // 648 bytes, of which TDX 1.0 has the first 584
	QEReport []byte
	AuthData []byte
	Unbound  bool // the quoting enclave does not vouch for the key
	Behind   []byte
}

// Offsets in a body.
const (
	OffTEETCBSVN  = 0
	OffSignerSEAM = 64
	OffAttributes = 120
	OffMRTD       = 136
	OffRTMR0      = 328
	OffReportData = 520
	OffTCBSVN2    = 584
	OffServiceTD  = 600
)

// Quote is a quote that everything is right with, after changes.
func (p *Platform) Quote(t testing.TB, change ...func(*QuoteParts)) []byte {
	t.Helper()
	le := binary.LittleEndian
	q := &QuoteParts{
		Version: 4, Header: quote.Header(4), Body: make([]byte, 648), QEReport: make([]byte, 384),
		AuthData: []byte("some data of the enclave's"),
	}
	copy(q.Body, []byte{7, 3, 5}) // module SVN 7 of version 3, loader 5
	for i := 3; i < 16; i++ {
		q.Body[i] = 5
	}
	le.PutUint64(q.Body[OffAttributes:], 1<<28)
	for i, off := range []int{OffMRTD, OffRTMR0, OffRTMR0 + 48, OffRTMR0 + 96} {
		copy(q.Body[off:], bytes.Repeat([]byte{byte(0x21 + i)}, 48))
	}
	copy(q.Body[OffReportData:], bytes.Repeat([]byte{0xda}, 64))
	copy(q.Body[OffTCBSVN2:], q.Body[:16])
	copy(q.QEReport[128:], signerQE())
	q.QEReport[48] = 0x11 // INIT and PROVISIONKEY, as Intel's
	le.PutUint16(q.QEReport[256:], 2)
	le.PutUint16(q.QEReport[258:], 8)
	key := ecKey(t, elliptic.P256())
	for _, c := range change {
		c(q)
	}
	le.PutUint16(q.Header, q.Version)
	return q.assemble(t, p, key)
}

func (q *QuoteParts) assemble(t testing.TB, p *Platform, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	parts := &quote.Parts{
		Header: q.Header, Body: q.Body, QEReport: q.QEReport, AuthData: q.AuthData,
		PCKChain: append(pki.PEM(p.pck.Cert, p.ca.Cert, p.root.Cert), p.ChainNote...),
	}
	if q.Version != 5 || !q.Is15 {
		parts.Body = q.Body[:584]
	}
	if !q.Unbound {
		parts.Vouch(must(quote.Point(&key.PublicKey))(t))
	}
	return append(must(parts.Sign(key, p.pck.Key.(*ecdsa.PrivateKey)))(t), q.Behind...)
}

// Parts are what collateral is made of, for changes before each is signed.
type Parts struct {
	TCBInfo, QE    map[string]any
	RevokedByRoot  []int64
	RevokedPCK     []int64
	TCBSignedByPCK *Platform
	PCKCRLByRoot   bool
	Processor      bool // the PCK's authority is the Processor CA
}

// Levels of a state.
func level(tcb map[string]any, status string, advisories ...string) map[string]any {
	l := map[string]any{"tcb": tcb, "tcbDate": "2025-01-01T00:00:00Z", "tcbStatus": status}
	if advisories != nil {
		l["advisoryIDs"] = advisories
	}
	return l
}

func components(n int) (list []map[string]any) {
	for range 16 {
		list = append(list, map[string]any{"svn": n})
	}
	return list
}

// PlatformLevel is a level of a platform, all of whose components have one version.
func PlatformLevel(sgx, tdx, pcesvn int, status string, advisories ...string) map[string]any {
	return level(map[string]any{
		"sgxtcbcomponents": components(sgx), "tdxtcbcomponents": components(tdx), "pcesvn": pcesvn,
	}, status, advisories...)
}

// SVNLevel is a level of a module or an enclave.
func SVNLevel(svn int, status string, advisories ...string) map[string]any {
	return level(map[string]any{"isvsvn": svn}, status, advisories...)
}

// Collateral is collateral by which the platform is up to date, after changes; as JSON.
func (i *Intel) Collateral(t testing.TB, change ...func(*Parts)) []byte {
	t.Helper()
	zeros := func(n int) string { return hex.EncodeToString(make([]byte, n)) }
	dates := func(m map[string]any) map[string]any {
		m["issueDate"] = AsOf().AddDate(0, 0, -10).Format("2006-01-02T15:04:05Z")
		m["nextUpdate"] = AsOf().AddDate(0, 0, 20).Format("2006-01-02T15:04:05Z")
		m["tcbEvaluationDataNumber"] = 18
		return m
	}
	module := map[string]any{"mrsigner": zeros(48), "attributes": zeros(8), "attributesMask": "ffffffffffffffff"}
	identity := map[string]any{
		"id": "TDX_03", "mrsigner": zeros(48), "attributes": zeros(8), "attributesMask": "ffffffffffffffff",
		"tcbLevels": []any{SVNLevel(6, "UpToDate"), SVNLevel(3, "OutOfDate", "INTEL-SA-01000")},
	}
	p := &Parts{
		TCBInfo: dates(map[string]any{
			"id": "TDX", "version": 3, "fmspc": "90C06F000000", "pceId": "0000", "tcbType": 0,
			"tdxModule": module, "tdxModuleIdentities": []any{identity},
			"tcbLevels": []any{
				PlatformLevel(5, 5, 11, "UpToDate"), PlatformLevel(3, 3, 5, "OutOfDate", "INTEL-SA-00900"),
			},
		}),
		QE: dates(map[string]any{
			"id": "TD_QE", "version": 2, "miscselect": zeros(4), "miscselectMask": "ffffffff",
			"attributes": "11" + zeros(15), "attributesMask": hex.EncodeToString(bytes.Repeat([]byte{0xff}, 16)),
			"mrsigner": hex.EncodeToString(signerQE()), "isvprodid": 2,
			"tcbLevels": []any{SVNLevel(8, "UpToDate"), SVNLevel(4, "OutOfDate")},
		}),
	}
	for _, c := range change {
		c(p)
	}
	return must(i.sign(t, p).Bytes())(t)
}

func (i *Intel) sign(t testing.TB, p *Parts) *collateral.Collateral {
	t.Helper()
	from, until := AsOf().AddDate(0, -1, 0), AsOf().AddDate(0, 1, 0)
	signer, ca := i.tcb, i.platform
	if p.TCBSignedByPCK != nil {
		signer = p.TCBSignedByPCK.pck
	}
	if p.Processor {
		ca = i.processor
	}
	if p.PCKCRLByRoot {
		ca = i.root
	}
	chain := pki.PEM(signer.Cert, i.root.Cert)
	text := func(m map[string]any) (body, sig []byte) {
		body = must(json.Marshal(m))(t)
		return body, must(pki.SignRaw(signer.Key.(*ecdsa.PrivateKey), body))(t)
	}
	c := &collateral.Collateral{
		PCKCRLChain: pki.PEM(ca.Cert, i.root.Cert), TCBInfoChain: chain, QEChain: chain,
		RootCRL: revoke(t, i.root, from, until, p.RevokedByRoot...),
		PCKCRL:  revoke(t, ca, from, until, p.RevokedPCK...),
	}
	c.TCBInfo, c.TCBInfoSig = text(p.TCBInfo)
	c.QE, c.QESig = text(p.QE)
	return c
}

// Below is what a chain of certificates says, without the root at its end and without what
// stands between the certificates.
func Below(text []byte) (der []byte) {
	var chain [][]byte
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		chain = append(chain, block.Bytes)
	}
	return bytes.Join(chain[:min(len(chain), 2)], nil)
}
