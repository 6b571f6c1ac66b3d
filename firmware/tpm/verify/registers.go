package verify

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/tpm"
	"github.com/vmlatch/vmlatch/firmware/tpm/quote"
	"github.com/vmlatch/vmlatch/firmware/tpm/seal"
)

// Registers are what an owner expects of a boot.
type Registers struct {
	Selection tpm.Selection
	Values    map[int][]byte
}

// Check is a refusal unless a quote has these registers; it may have more.
func (r *Registers) Check(got *quote.Facts) error {
	bad := refusal.New(refusal.TPMRegisters)
	if r.Selection.Bank != got.Selection.Bank {
		return bad.Because("the quote is of the bank %v", got.Selection.Bank)
	}
	var differ []string
	for _, n := range r.Selection.PCRs {
		switch v, ok := got.Values[n]; {
		case !ok:
			return bad.Because("the quote has no PCR %d", n)
		case !bytes.Equal(v, r.Values[n]):
			differ = append(differ, fmt.Sprintf("PCR %d (%s) is %x, must be %x", n, seal.Holds(n), v, r.Values[n]))
		}
	}
	if differ != nil {
		return bad.Because("%s", strings.Join(differ, "; "))
	}
	return nil
}

// Policy is what an owner demands of a quote.
type Policy struct {
	Registers
	Keys      []*quote.AK // one of them must have signed it
	Challenge []byte
}

// Genuine verifies that one of the keys has signed a quote, and the challenge in it.
func (p *Policy) Genuine(q *quote.Quote) (*quote.AK, *Verified, error) {
	for _, k := range p.Keys {
		if !bytes.Equal(k.AK, q.AK) {
			continue
		}
		v, err := Verify(q, k, p.Challenge)
		if err != nil {
			return nil, nil, refusal.New(refusal.TPMQuote).Because("%v", err)
		}
		return k, v, nil
	}
	return nil, nil, refusal.New(refusal.TPMKey)
}
