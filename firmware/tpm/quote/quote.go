package quote

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"

	"github.com/google/go-tpm/tpm2"

	"github.com/vmlatch/vmlatch/firmware/tpm"
	"github.com/vmlatch/vmlatch/firmware/tpm/seal"
)

// ErrQuote is wrapped by errors about quotes that do not prove what they should.
var ErrQuote = errors.New("the quote is refused")

// SchemaQuote is the schema of quotes.
const SchemaQuote = "latchkey.tpm-quote/1"

// Quote is registers that a TPM signs.
type Quote struct {
	Schema    string      `json:"schema"`
	Trust     string      `json:"trust"`     // always "host"
	AK        []byte      `json:"ak"`        // TPMT_PUBLIC
	Attest    []byte      `json:"attest"`    // TPMS_ATTEST
	Signature []byte      `json:"signature"` // TPMT_SIGNATURE
	Bank      string      `json:"bank"`
	PCRs      seal.Values `json:"pcrs"`
	Log       []byte      `json:"log,omitempty"` // event log
}

// MinNonce is how long a challenge must be, in bytes.
const MinNonce = 8

// binding is what a quote signs of a challenge.
func binding(nonce []byte) []byte {
	sum := sha256.Sum256(nonce)
	return sum[:]
}

// tries bounds how often registers are read and signed until both are the same.
const tries = 5

// Make has a TPM sign registers and a challenge. The log is not signed, but leads to the registers.
func Make(c *tpm.Conn, nonce []byte, s tpm.Selection, log []byte) (*Quote, error) {
	ak, err := openAK(c)
	if err != nil {
		return nil, err
	}
	for try := 0; ; try++ {
		values, err := c.ReadPCRs(s)
		if err != nil {
			return nil, err
		}
		r, err := tpm2.Quote{
			SignHandle:     tpm2.AuthHandle{Handle: ak.handle, Name: ak.name, Auth: tpm2.PasswordAuth(nil)},
			QualifyingData: tpm2.TPM2BData{Buffer: binding(nonce)},
			InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, PCRSelect: s.List(),
		}.Execute(c)
		if err != nil {
			return nil, tpm.Explain("quote", err)
		}
		q := &Quote{
			Schema: SchemaQuote, Trust: "host", AK: tpm2.Marshal(*ak.public), Attest: r.Quoted.Bytes(),
			Signature: tpm2.Marshal(r.Signature), Bank: s.Bank.String(), PCRs: seal.Values{}, Log: log,
		}
		for n, v := range values {
			q.PCRs[strconv.Itoa(n)] = hex.EncodeToString(v)
		}
		if _, err = q.Attested(nonce); err == nil || try >= tries { // else one was extended meanwhile
			return q, err
		}
	}
}

// ParseQuote reads a quote.
func ParseQuote(b []byte) (*Quote, error) {
	q := &Quote{}
	err := parse(b, q, &q.Schema, SchemaQuote)
	return q, err
}

// Facts are what a quote says.
type Facts struct {
	Selection tpm.Selection
	Values    map[int][]byte
	Resets    uint32 // how often the TPM was started
	Restarts  uint32 // and resumed
	Clock     uint64 // milliseconds in which it was on
}

// magic begins what a TPM itself says (part 2, section 6.2, TPM_GENERATED_VALUE): a restricted key
// signs nothing else that begins so.
const magic = 0xff544347

// Attested reads what was signed, which must be of these registers and this challenge. It does
// not verify the signature.
func (q *Quote) Attested(nonce []byte) (*Facts, error) {
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](q.Attest)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrQuote, err)
	case !bytes.Equal(tpm2.Marshal(*a), q.Attest):
		return nil, fmt.Errorf("%w: it is not in the form that a TPM writes", ErrQuote)
	case a.Magic != magic || a.Type != tpm2.TPMSTAttestQuote:
		return nil, fmt.Errorf("%w: what is signed is not a quote (type %#x)", ErrQuote, uint16(a.Type))
	case !hmac.Equal(a.ExtraData.Buffer, binding(nonce)):
		return nil, fmt.Errorf("%w: it answers another challenge: it is older, or was asked for elsewhere", ErrQuote)
	}
	info, err := a.Attested.Quote()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrQuote, err)
	}
	f := &Facts{
		Resets: a.ClockInfo.ResetCount, Restarts: a.ClockInfo.RestartCount, Clock: a.ClockInfo.Clock,
	}
	if f.Selection, f.Values, err = q.PCRs.Registers(q.Bank); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrQuote, err)
	}
	if !bytes.Equal(tpm2.Marshal(info.PCRSelect), tpm2.Marshal(f.Selection.List())) {
		return nil, fmt.Errorf("%w: other registers are signed than those it shows", ErrQuote)
	}
	digest, err := f.Selection.Digest(f.Values)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrQuote, err)
	}
	if !hmac.Equal(digest, info.PCRDigest.Buffer) {
		return nil, fmt.Errorf("%w: other values are signed than those it shows", ErrQuote)
	}
	return f, nil
}
