package evidence

import (
	"bytes"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/evidence/bundle"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
	"github.com/vmlatch/vmlatch/firmware/tdx/quote"
	tpmquote "github.com/vmlatch/vmlatch/firmware/tpm/quote"
)

// MaxSize is the longest evidence that is read, with whatever is around it, in bytes.
const MaxSize = 256 << 10

// Technologies of evidence.
const (
	SNP = "sev-snp"
	TDX = "tdx"
	// VTPM is the TPM of a guest whose host is trusted.
	VTPM = "vtpm"
)

// Evidence is a report or a quote: one of Report, Quote and TPM.
type Evidence struct {
	Technology string
	Report     *report.Report
	Table      []report.Entry // certificates that came with a report
	Quote      *quote.Quote
	TPM        *tpmquote.Quote
	Wrapping   string // what was around it; "" for nothing
}

// Digest is what was measured of the launch: an SNP report's MEASUREMENT, or a quote's MRTD.
func (e *Evidence) Digest() []byte {
	if e.Report != nil {
		return e.Report.Measurement[:]
	}
	return e.Quote.Body.MRTD[:]
}

// ReportData are the 64 bytes that the guest chose, of a report or of a trust domain's quote.
func (e *Evidence) ReportData() [64]byte {
	if e.Report != nil {
		return e.Report.ReportData
	}
	return e.Quote.Body.ReportData
}

// For reports whether evidence says that it was made for these report data.
func (e *Evidence) For(data [64]byte) bool {
	if e.TPM != nil {
		_, err := e.TPM.Attested(data[:])
		return err == nil
	}
	got := e.ReportData()
	return subtle.ConstantTimeCompare(got[:], data[:]) == 1
}

// ErrUnknown is wrapped by errors about files that are not evidence, and say what they are.
var ErrUnknown = errors.New("not evidence")

// unknown says what a file is instead.
func unknown(format string, args ...any) error {
	return fmt.Errorf("%w: it is %s", ErrUnknown, fmt.Sprintf(format, args...))
}

// Recognise reads a report or a quote, also in the wrappings that people have: an extended
// report with its table, the kernel's response, a report of Azure's paravisor, base64, hex. The
// error is a refusal of the quote's form, or wraps ErrUnknown.
func Recognise(b []byte) (*Evidence, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrUnknown, len(b), MaxSize)
	}
	if e, err := binaryEvidence(b); !errors.Is(err, errOther) {
		return e, err
	}
	text := bytes.TrimSpace(b)
	for _, x := range []struct {
		name   string
		decode func(string) ([]byte, error)
	}{
		{"hex", hex.DecodeString},
		{"base64", base64.StdEncoding.DecodeString},
		{"base64url", base64.RawURLEncoding.DecodeString},
	} {
		raw, err := x.decode(string(bytes.Join(bytes.Fields(text), nil)))
		if err != nil || len(raw) < 48 {
			continue
		}
		e, err := binaryEvidence(raw)
		if e != nil {
			if e.Wrapping != "" {
				e.Wrapping += ", "
			}
			e.Wrapping += "in " + x.name
			return e, nil
		}
		if !errors.Is(err, errOther) {
			return nil, err
		}
	}
	return nil, whatItIs(text)
}

// Offsets of what wraps a report.
const (
	hclMagic     = "HCLA" // Azure's paravisor (OpenHCL, openhcl_attestation_protocol, igvm_attest)
	hclReport    = 0x20
	hclType      = hclReport + report.Size + 8 // of the run-time data behind the report
	hclSNP       = 2
	hclTDX       = 4
	respReport   = 0x20 // Linux, uapi/linux/sev-guest.h: status, size, reserved
	respSize     = 4000
	tdReportSize = 1024
	algorithm    = 0x34 // of a report's signature
	laterVersion = 16   // up to which it is a report, of a version that may not be judged
)

// binaryEvidence reads evidence that is not written as text.
func binaryEvidence(b []byte) (*Evidence, error) {
	le := binary.LittleEndian
	switch {
	case len(b) >= 48 && isQuote(b):
		q, err := quote.Parse(b)
		if err != nil {
			return nil, err
		}
		return &Evidence{Technology: TDX, Quote: q}, nil
	case len(b) == report.Size:
		return newReport(b, nil, "")
	case len(b) == report.Size+1 && b[report.Size] == '\n':
		return newReport(b[:report.Size], nil, "with a line's end behind it")
	case len(b) == respReport+report.Size && le.Uint32(b) == 0 && le.Uint32(b[4:]) == report.Size:
		return newReport(b[respReport:], nil, "inside a response of /dev/sev-guest")
	case len(b) > hclType+4 && bytes.HasPrefix(b, []byte(hclMagic)):
		if le.Uint32(b[hclType:]) == hclTDX {
			return nil, unknown(
				"a report of Azure's paravisor with a TDREPORT in it, which only this machine can check:" +
					" ask the paravisor's service for the quote",
			)
		}
		return newReport(b[hclReport:hclReport+report.Size], nil, "inside a report of Azure's paravisor")
	case len(b) == respSize && le.Uint32(b) == 0 && le.Uint32(b[4:]) == report.Size:
		return newReport(b[respReport:respReport+report.Size], nil, "inside a response of /dev/sev-guest")
	case len(b) == respSize && le.Uint32(b) != 0 && le.Uint32(b[4:]) == 0:
		return nil, unknown(
			"a response of /dev/sev-guest without a report: the firmware answered with status %#x",
			le.Uint32(b),
		)
	case len(b) > report.Size && le.Uint32(b) <= laterVersion && le.Uint32(b[algorithm:]) == 1:
		if table, err := report.ParseTable(b[report.Size:]); err == nil {
			return newReport(b[:report.Size], table, "with a certificate table behind it")
		}
	}
	return nil, errOther
}

// errOther means that bytes are not evidence by themselves: they may be text.
var errOther = errors.New("not evidence in binary form")

// isQuote reports whether bytes begin like a quote of a trust domain, of any version.
func isQuote(b []byte) bool {
	le := binary.LittleEndian
	return le.Uint16(b) >= 3 && le.Uint16(b) <= 16 && le.Uint32(b[4:]) == 0x81
}

func newReport(b []byte, table []report.Entry, wrapping string) (*Evidence, error) {
	r, err := report.Parse(b)
	if err != nil {
		return nil, err
	}
	return &Evidence{Technology: SNP, Report: r, Table: table, Wrapping: wrapping}, nil
}

// whatItIs says what people may have taken for evidence.
func whatItIs(b []byte) error {
	has := func(words ...string) bool {
		for _, w := range words {
			if !bytes.Contains(b, []byte(w)) {
				return false
			}
		}
		return true
	}
	if f, err := bundle.Recognise(b); err == nil && len(f.Parts)+len(f.Chains) > 0 && b[0] != '{' {
		return unknown("a certificate or a list: it belongs in a bundle (latchkey bundle add)")
	}
	switch {
	case bytes.Contains(b[:min(len(b), 100)], []byte("Spec ID Event03")):
		return unknown("an event log: it goes with a quote (--event-log)")
	case has(bundle.Schema):
		return unknown("a bundle (--bundle)")
	case has("tcb_info_issuer_chain") || has("tcbInfo") || has("enclaveIdentity"):
		return unknown("collateral: it belongs in a bundle (latchkey bundle add)")
	case len(b) == 0:
		return unknown("empty: the guest's kernel gives an empty file where the platform's service fails")
	case len(b) == tdReportSize && b[0] == 0x81:
		return unknown("a TDREPORT, which only this machine can check: ask for a quote (configfs-tsm, outblob)")
	case len(b) > 48 && binary.LittleEndian.Uint16(b) == 3 && binary.LittleEndian.Uint32(b[4:]) == 0:
		return unknown("a quote of an SGX enclave")
	case has("attestation_report"):
		return unknown(
			"evidence of trustee, with the report's fields and not its bytes: give the 1184 bytes themselves",
		)
	case has(tpmquote.SchemaQuote):
		return unknown("a quote of a TPM: latchkey tpm quote verifies it")
	case has("cc_eventlog") || has(`"quote"`):
		return unknown(`a JSON object: give what stands under "quote" by itself (base64 is read)`)
	case b[0] == '{':
		return unknown("a JSON object of another kind")
	case bytes.HasPrefix(b, []byte("eyJ")):
		return unknown("a token (JWT): an attestation service's word, not evidence")
	case has("-----BEGIN CERTIFICATE"):
		return unknown("a certificate: it belongs in a bundle (latchkey bundle add)")
	case has("-----BEGIN"):
		return unknown("a PEM file")
	case bytes.HasPrefix(b, []byte{0xff, 'T', 'C', 'G'}):
		return unknown("a quote of a TPM")
	case bytes.HasPrefix(b, []byte{0x0a, 0xa0, 0x09}):
		return unknown("a protobuf message of go-sev-guest: its field 1 has the report")
	case len(b) < report.Size:
		return unknown("%d bytes: a report has %d, a quote some thousand; perhaps cut off", len(b), report.Size)
	}
	return fmt.Errorf("%w: %d bytes of an unknown kind", ErrUnknown, len(b))
}
