package quote

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"github.com/vmlatch/vmlatch/firmware/pki"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
)

// Parts are what a quoting enclave makes a quote of: for emulators and tests.
type Parts struct {
	Header   []byte // 48 bytes
	Body     []byte // 584 bytes, or the 648 of TDX 1.5
	QEReport []byte // 384 bytes, without REPORTDATA
	AuthData []byte
	PCKChain []byte // PEM
}

// Header is that of a quote of a trust domain.
func Header(version uint16) []byte {
	b := make([]byte, headerSize)
	binary.LittleEndian.PutUint16(b, version)
	binary.LittleEndian.PutUint16(b[offKeyType:], keyTypeP256)
	binary.LittleEndian.PutUint32(b[offTEE:], teeTDX)
	copy(b[offVendor:], vendorIntel[:])
	return b
}

// Bytes is the body as the TDX module writes it; is15 adds the fields of TDX 1.5.
func (t *Body) Bytes(is15 bool) []byte {
	b := slices.Concat(t.TEETCBSVN[:], t.MRSEAM[:], t.MRSignerSEAM[:], t.SEAMAttributes[:])
	b = binary.LittleEndian.AppendUint64(b, uint64(t.Attributes))
	b = slices.Concat(b, t.XFAM[:], t.MRTD[:], t.MRConfigID[:], t.MROwner[:], t.MROwnerConfig[:],
		t.RTMR[0][:], t.RTMR[1][:], t.RTMR[2][:], t.RTMR[3][:], t.ReportData[:])
	if is15 {
		b = slices.Concat(b, t.TEETCBSVN2[:], t.MRServiceTD[:])
	}
	return b
}

// QEReport is the report of a quoting enclave, without REPORTDATA.
func QEReport(cpusvn [16]byte, qe *collateral.QEReport) []byte {
	b := make([]byte, qeReportSize)
	copy(b, cpusvn[:])
	copy(b[offMiscSelect:], qe.MiscSelect[:])
	copy(b[offAttributes:], qe.Attributes[:])
	copy(b[offMRSigner:], qe.MRSigner)
	binary.LittleEndian.PutUint16(b[offProdID:], qe.ProdID)
	binary.LittleEndian.PutUint16(b[offISVSVN:], qe.SVN)
	return b
}

// Point is a key as it stands in a quote: x and y.
func Point(key *ecdsa.PublicKey) ([]byte, error) {
	b, err := key.Bytes()
	if err != nil {
		return nil, err
	}
	return b[1:], nil
}

// Vouch makes the enclave's report vouch for an attestation key.
func (p *Parts) Vouch(point []byte) {
	sum := sha256.Sum256(slices.Concat(point, p.AuthData))
	copy(p.QEReport[offReportData:], sum[:])
}

// Sign puts a quote together: the platform's key signs the enclave's report, and the attestation
// key the body.
func (p *Parts) Sign(attestation, platform *ecdsa.PrivateKey) ([]byte, error) {
	le := binary.LittleEndian
	b := bytes.Clone(p.Header)
	if le.Uint16(b) == 5 {
		kind := uint16(body10)
		if len(p.Body) == bodySize15 {
			kind = body15
		}
		b = le.AppendUint32(le.AppendUint16(b, kind), uint32(len(p.Body)))
	}
	b = append(b, p.Body...)
	point, err := Point(&attestation.PublicKey)
	if err != nil {
		return nil, err
	}
	qeSig, err := pki.SignRaw(platform, p.QEReport)
	if err != nil {
		return nil, err
	}
	sig, err := pki.SignRaw(attestation, b)
	if err != nil {
		return nil, err
	}
	inner := slices.Concat(p.QEReport, qeSig)
	inner = append(le.AppendUint16(inner, uint16(len(p.AuthData))), p.AuthData...)
	inner = append(le.AppendUint32(le.AppendUint16(inner, certPCKChain), uint32(len(p.PCKChain))), p.PCKChain...)
	data := append(sig, point...)
	data = append(le.AppendUint32(le.AppendUint16(data, certQEReport), uint32(len(inner))), inner...)
	return append(le.AppendUint32(b, uint32(len(data))), data...), nil
}
