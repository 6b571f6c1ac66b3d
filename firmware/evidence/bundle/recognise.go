package bundle

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
)

// Found is what a file holds that belongs in a bundle, or helps to fill one.
type Found struct {
	Parts  []Part
	Chains [][]byte // PEM: they vouch for parts that come without
	Notes  []string // what was left alone, and why
}

// quoteHead is where the type of a quote ends (DCAP, appendix A.3).
const quoteHead = 8

// ErrUnknown is wrapped by errors about files that hold nothing for a bundle.
var ErrUnknown = errors.New("nothing for a bundle")

// Recognise tells by its content what a file holds. Nothing is verified.
func Recognise(b []byte) (*Found, error) {
	f := &Found{}
	trimmed := bytes.TrimSpace(b)
	switch {
	case len(trimmed) == 0:
		return nil, fmt.Errorf("%w: it is empty", ErrUnknown)
	case len(b) == report.Size:
		return nil, fmt.Errorf(
			"%w: it is an SEV-SNP report: latchkey bundle urls --report says what belongs to it",
			ErrUnknown,
		)
	case len(b) > quoteHead && b[0] >= 4 && b[1] == 0 && bytes.Equal(b[4:quoteHead], []byte{0x81, 0, 0, 0}):
		return nil, fmt.Errorf(
			"%w: it is a quote of TDX: latchkey bundle urls --quote says what belongs to it",
			ErrUnknown,
		)
	case bytes.HasPrefix(b, []byte("HTTP/")):
		return f, f.answer(string(b))
	case trimmed[0] == '{':
		return f, f.json(trimmed)
	case trimmed[0] == '<':
		return nil, fmt.Errorf("%w: it is a web page, or another text of a server's", ErrUnknown)
	case bytes.Contains(b, []byte("-----BEGIN ")):
		return f, f.pem(b)
	case bytes.Contains(bytes.ToLower(b), []byte("issuer-chain:")):
		return f, f.headers(string(b))
	case f.der(b):
		return f, nil
	case len(b) == sev.CertificateSize:
		f.Parts = append(f.Parts, Part{Kind: CEK, Data: b})
		return f, nil
	}
	text := string(bytes.Join(bytes.Fields(trimmed), nil))
	for _, decode := range []func(string) ([]byte, error){hex.DecodeString, base64.StdEncoding.DecodeString} {
		if der, err := decode(text); err == nil && f.der(der) {
			return f, nil
		}
	}
	if entries, err := report.ParseTable(b); err == nil && len(entries) > 0 {
		for _, e := range entries {
			if e.GUID == report.GUIDVCEK || e.GUID == report.GUIDVLEK {
				f.Parts = append(f.Parts, Part{Kind: Endorsement, Data: e.Data})
			} else {
				f.Notes = append(f.Notes, "a certificate of the table that is compiled in, or unknown")
			}
		}
		return f, nil
	}
	var head asn1.RawValue
	if _, err := asn1.Unmarshal(b, &head); b[0] == 0x30 && err != nil {
		return nil, fmt.Errorf("%w: it begins as a certificate or a list does, and is cut off or damaged", ErrUnknown)
	}
	return nil, fmt.Errorf("%w: neither a certificate, nor a revocation list, nor collateral", ErrUnknown)
}

// der reads a certificate or a list.
func (f *Found) der(b []byte) bool {
	if x, err := x509.ParseCertificate(b); err == nil {
		f.certificate(x)
		return true
	}
	if x, err := x509.ParseRevocationList(b); err == nil {
		f.list(x, b)
		return true
	}
	return false
}

func (f *Found) certificate(x *x509.Certificate) {
	switch name := x.Subject.CommonName; {
	case name == "SEV-VCEK" || name == "SEV-VLEK":
		f.Parts = append(f.Parts, Part{Kind: Endorsement, Data: x.Raw})
	case strings.HasPrefix(name, "ARK-") || strings.HasPrefix(name, "SEV-"):
		f.Notes = append(f.Notes, name+" is compiled in")
	default:
		f.Notes = append(f.Notes, fmt.Sprintf("%q is not needed by itself", name))
	}
}

func (f *Found) list(x *x509.RevocationList, der []byte) {
	k := AMDCRL
	switch name := x.Issuer.CommonName; {
	case name == collateral.NameRoot:
		k = RootCRL
	case strings.HasPrefix(name, "Intel SGX PCK"):
		k = PCKCRL
	}
	f.Parts = append(f.Parts, Part{Kind: k, Data: der})
}

// pem reads certificates and lists. Chains of Intel's are kept whole.
func (f *Found) pem(text []byte) error {
	intel := false
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "CERTIFICATE", "X509 CRL":
			if !f.der(block.Bytes) {
				return fmt.Errorf("%w: a block %s cannot be read", ErrUnknown, block.Type)
			}
		default:
			f.Notes = append(f.Notes, "a block "+block.Type)
		}
		intel = intel || bytes.Contains(block.Bytes, []byte("Intel SGX"))
	}
	if intel {
		f.Chains = append(f.Chains, text)
	}
	if len(f.Parts)+len(f.Chains)+len(f.Notes) == 0 {
		return fmt.Errorf("%w: there is no whole block in it", ErrUnknown)
	}
	return nil
}

// answer reads what a server said, headers and all (curl -i). Of several answers, as with a
// redirection, the last one counts.
func (f *Found) answer(text string) error {
	status, _, _ := strings.Cut(text, "\n")
	code, _, _ := strings.Cut(
		strings.TrimSpace(strings.TrimLeft(status[strings.IndexByte(status, ' ')+1:], " ")),
		" ",
	)
	if code != "200" {
		_, rest, _ := strings.Cut(strings.ReplaceAll(text, "\r\n\r\n", "\n\n"), "\n\n")
		if strings.HasPrefix(rest, "HTTP/") {
			return f.answer(rest)
		}
		return fmt.Errorf("%w: it is an answer of a server's that says %q", ErrUnknown, strings.TrimSpace(status))
	}
	return f.headers(text)
}

// headers reads chains from the headers of an answer of Intel's service, as curl -D saves them,
// and with curl -i the answer behind them.
func (f *Found) headers(text string) error {
	text, body, found := strings.Cut(text, "\r\n\r\n")
	if !found {
		text, body, _ = strings.Cut(text, "\n\n")
	}
	if strings.TrimSpace(body) != "" {
		answer, err := Recognise([]byte(body))
		if err != nil {
			return err
		}
		*f = *answer
	}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(line, ":")
		if !ok || !strings.HasSuffix(strings.ToLower(name), "issuer-chain") {
			continue
		}
		chain, err := url.PathUnescape(strings.TrimSpace(value))
		if err != nil {
			return fmt.Errorf("%w: header %s: %w", ErrUnknown, name, err)
		}
		f.Chains = append(f.Chains, []byte(chain))
	}
	return nil
}

// json reads another bundle, an answer of Intel's service, or collateral in one object.
func (f *Found) json(text []byte) error {
	var head struct {
		Schema    string          `json:"schema"`
		TCBInfo   json.RawMessage `json:"tcbInfo"`
		QE        json.RawMessage `json:"enclaveIdentity"`
		Signature string          `json:"signature"`
		Whole     string          `json:"tcb_info"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	switch {
	case head.Schema == Schema:
		b, err := Parse(text)
		if err != nil {
			return err
		}
		f.Parts = b.Parts
		return nil
	case head.TCBInfo != nil || head.QE != nil:
		sig, err := hex.DecodeString(head.Signature)
		if err != nil {
			return fmt.Errorf("%w: signature: %w", ErrUnknown, err)
		}
		if head.TCBInfo != nil {
			f.Parts = append(f.Parts, Part{Kind: TCBInfo, Data: head.TCBInfo, Signature: sig})
		} else {
			f.Parts = append(f.Parts, Part{Kind: QEIdentity, Data: head.QE, Signature: sig})
		}
		return nil
	case head.Whole != "":
		c, err := collateral.Parse(text)
		if err != nil {
			return err
		}
		f.Parts = FromCollateral(c)
		return nil
	}
	return fmt.Errorf("%w: a JSON object of another kind", ErrUnknown)
}

// FromCollateral takes collateral apart.
func FromCollateral(c *collateral.Collateral) []Part {
	return []Part{
		{Kind: RootCRL, Data: c.RootCRL},
		{Kind: PCKCRL, Data: c.PCKCRL, Chain: c.PCKCRLChain},
		{Kind: TCBInfo, Data: c.TCBInfo, Chain: c.TCBInfoChain, Signature: c.TCBInfoSig},
		{Kind: QEIdentity, Data: c.QE, Chain: c.QEChain, Signature: c.QESig},
	}
}

// NeedsChain reports whether a part does not say who signed it.
func (p *Part) NeedsChain() bool {
	return p.Chain == nil && (p.Kind == PCKCRL || p.Kind == TCBInfo || p.Kind == QEIdentity)
}

// ErrNoChain is wrapped by errors about parts whose signer is not known.
var ErrNoChain = errors.New("the certificates that vouch for it are missing")

// AddWithChains is Add for a part that may come without its chain: those given and those of the
// bundle's other parts are tried.
func (b *Bundle) AddWithChains(p Part, chains [][]byte, roots Roots) (changed bool, err error) {
	if !p.NeedsChain() {
		return b.Add(p, roots)
	}
	for _, other := range b.Parts {
		if other.Chain != nil {
			chains = append(chains[:len(chains):len(chains)], other.Chain)
		}
	}
	err = fmt.Errorf("%s: %w", p.Kind, ErrNoChain)
	for _, c := range chains {
		p.Chain = c
		if changed, e := b.Add(p, roots); e == nil {
			return changed, nil
		} else if errors.Is(err, ErrNoChain) {
			err = fmt.Errorf("%s: %w, or are others (%v)", p.Kind, ErrNoChain, e)
		}
	}
	return false, err
}
