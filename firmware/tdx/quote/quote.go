package quote

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/pki"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/tdx/attr"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
)

// MaxSize is the longest quote that is read, in bytes.
const MaxSize = 64 << 10

// Sizes and offsets (DCAP, appendix A.3).
const (
	headerSize   = 48
	offKeyType   = 2
	offTEE       = 4
	offReserved  = 8
	offVendor    = 12
	offUserData  = 28
	bodySize10   = 584
	bodySize15   = 648
	body10       = 2 // types of bodies in version 5
	body15       = 3
	keyTypeP256  = 2
	teeTDX       = 0x81
	certQEReport = 6 // types of certification data
	certPCKChain = 5
	qeReportSize = 384
	signature    = 64
)

// vendorIntel is the ID of Intel's quoting enclave.
var vendorIntel = [16]byte{
	0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07,
}

// Body is what the TDX module says of a trust domain (TDX module, TDREPORT_STRUCT).
type Body struct {
	TEETCBSVN      [16]byte
	MRSEAM         [48]byte
	MRSignerSEAM   [48]byte
	SEAMAttributes [8]byte
	Attributes     attr.Attributes
	XFAM           [8]byte
	MRTD           [48]byte
	MRConfigID     [48]byte
	MROwner        [48]byte
	MROwnerConfig  [48]byte
	RTMR           [4][48]byte
	ReportData     [64]byte
	// Of TDX 1.5 alone.
	TEETCBSVN2  [16]byte
	MRServiceTD [48]byte
}

// Quote is a quote, field by field. Nothing in it is proven yet.
type Quote struct {
	Version  uint16
	UserData [20]byte
	Body     Body
	Is15     bool // the body is of TDX 1.5

	signed    []byte // what the attestation key signs
	sig       []byte
	key       []byte // the attestation key, x and y
	qeReport  []byte
	qeSig     []byte // by the platform's key
	authData  []byte
	PCKChain  []byte // PEM
	qe        collateral.QEReport
	qeBinding []byte // REPORTDATA of the quoting enclave
	chain     []*x509.Certificate
	chainErr  error
	pck       *collateral.PCK // of the chain's first certificate
	pckErr    error
}

// reader takes a quote apart. It never goes beyond the end.
type reader struct {
	b   []byte
	err error
}

func (r *reader) take(n int) []byte {
	if r.err != nil || n < 0 || n > len(r.b) {
		if r.err == nil {
			r.err = refusal.New(refusal.QuoteSize).Because("%d bytes are missing", n-len(r.b))
		}
		return make([]byte, max(0, min(n, MaxSize)))
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) u16() int { return int(binary.LittleEndian.Uint16(r.take(2))) }
func (r *reader) u32() int { return int(min(binary.LittleEndian.Uint32(r.take(4)), MaxSize+1)) }

// Parse reads a quote. What comes behind it is left alone: quoting services fill their buffers.
// The error is a refusal.
func Parse(b []byte) (*Quote, error) {
	if len(b) > MaxSize {
		return nil, refusal.New(refusal.QuoteSize).Because("%d bytes, at most %d", len(b), MaxSize)
	}
	q, all := &Quote{}, &reader{b: b}
	header := all.take(headerSize)
	if all.err != nil {
		return nil, all.err
	}
	if err := q.header(header); err != nil {
		return nil, err
	}
	body, err := q.body(all)
	if err != nil {
		return nil, err
	}
	q.signed = b[:len(b)-len(all.b)]
	q.Body.read(body)
	data := &reader{b: all.take(all.u32())}
	if all.err != nil {
		return nil, all.err
	}
	return q, q.signature(data)
}

func (q *Quote) header(b []byte) error {
	le := binary.LittleEndian
	q.Version = le.Uint16(b)
	copy(q.UserData[:], b[offUserData:])
	switch {
	case q.Version != 4 && q.Version != 5:
		return refusal.New(refusal.QuoteVersion).Value("version", fmt.Sprint(q.Version), "")
	case le.Uint16(b[offKeyType:]) != keyTypeP256:
		return refusal.New(refusal.AttestationKeyType).Value("type", fmt.Sprint(le.Uint16(b[offKeyType:])), "2")
	case le.Uint32(b[offTEE:]) != teeTDX:
		return refusal.New(refusal.TEEType).Value("type", fmt.Sprintf("%#x", le.Uint32(b[offTEE:])), "0x81")
	case !bytes.Equal(b[offVendor:offUserData], vendorIntel[:]):
		return refusal.New(refusal.QEVendor).Value("vendor", hex.EncodeToString(b[offVendor:offUserData]), "")
	}
	return nil
}

// body takes the body, of which version 5 tells type and size.
func (q *Quote) body(r *reader) ([]byte, error) {
	size := bodySize10
	if q.Version == 5 {
		kind := r.u16()
		said := r.u32()
		switch {
		case r.err != nil:
			return nil, r.err
		case kind == body10 && said == bodySize10:
		case kind == body15 && said == bodySize15:
			size, q.Is15 = bodySize15, true
		default:
			return nil, refusal.New(refusal.BodyType).Because("type %d of %d bytes", kind, said)
		}
	}
	b := r.take(size)
	return b, r.err
}

// read reads a body of either size.
func (t *Body) read(b []byte) {
	r := &reader{b: b}
	for _, to := range [][]byte{t.TEETCBSVN[:], t.MRSEAM[:], t.MRSignerSEAM[:], t.SEAMAttributes[:]} {
		copy(to, r.take(len(to)))
	}
	t.Attributes = attr.Attributes(binary.LittleEndian.Uint64(r.take(8)))
	for _, to := range [][]byte{
		t.XFAM[:], t.MRTD[:], t.MRConfigID[:], t.MROwner[:], t.MROwnerConfig[:],
		t.RTMR[0][:], t.RTMR[1][:], t.RTMR[2][:], t.RTMR[3][:], t.ReportData[:],
	} {
		copy(to, r.take(len(to)))
	}
	if len(r.b) > 0 {
		copy(t.TEETCBSVN2[:], r.take(16))
		copy(t.MRServiceTD[:], r.take(48))
	}
}

// signature takes the signature data apart (DCAP, appendix A.3.8 to A.3.11).
func (q *Quote) signature(r *reader) error {
	q.sig, q.key = r.take(signature), r.take(signature)
	kind := r.u16()
	certs := &reader{b: r.take(r.u32()), err: r.err}
	if r.err != nil {
		return r.err
	}
	if kind != certQEReport {
		return refusal.New(refusal.CertificationData).Value("type", fmt.Sprint(kind), "6")
	}
	q.qeReport, q.qeSig = certs.take(qeReportSize), certs.take(signature)
	q.authData = certs.take(certs.u16())
	inner := certs.u16()
	q.PCKChain = certs.take(certs.u32())
	if certs.err != nil {
		return certs.err
	}
	if inner != certPCKChain {
		return refusal.New(refusal.CertificationData).Value("inner type", fmt.Sprint(inner), "5")
	}
	q.PCKChain = bytes.TrimRight(q.PCKChain, "\x00")
	if q.chain, q.chainErr = pki.ParsePEM(q.PCKChain); q.chainErr == nil { // verification complains
		q.pck, q.pckErr = collateral.ParsePCK(q.chain[0])
	}
	q.readQE()
	return nil
}

// Offsets in the report of an enclave (Intel SDM volume 3D, table 37-30).
const (
	offMiscSelect = 16
	offAttributes = 48
	offMRSigner   = 128
	offProdID     = 256
	offISVSVN     = 258
	offReportData = 320
)

func (q *Quote) readQE() {
	le, b := binary.LittleEndian, q.qeReport
	copy(q.qe.MiscSelect[:], b[offMiscSelect:])
	copy(q.qe.Attributes[:], b[offAttributes:])
	q.qe.MRSigner = b[offMRSigner : offMRSigner+32]
	q.qe.ProdID, q.qe.SVN = le.Uint16(b[offProdID:]), le.Uint16(b[offISVSVN:])
	q.qeBinding = b[offReportData:qeReportSize]
}
