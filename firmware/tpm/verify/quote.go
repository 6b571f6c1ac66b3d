package verify

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"

	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/tpm/quote"
)

// Verified is what a quote proves, if its TPM's keeper does not lie.
type Verified struct {
	*quote.Facts
	Log *eventlog.Log // it leads to the registers; nil if there was none
}

// Verify verifies a quote: that an attestation key that is known has signed the registers and this
// challenge, and that the log leads to the registers.
func Verify(q *quote.Quote, known *quote.AK, nonce []byte) (*Verified, error) {
	if len(nonce) < quote.MinNonce {
		return nil, fmt.Errorf(
			"%w: the challenge has %d bytes, must have %d",
			quote.ErrQuote,
			len(nonce),
			quote.MinNonce,
		)
	}
	if !bytes.Equal(known.AK, q.AK) {
		return nil, fmt.Errorf("%w: another attestation key has signed it", quote.ErrQuote)
	}
	ak, err := quote.Public(known.AK)
	if err != nil {
		return nil, err
	}
	if err := quote.CheckAK(ak); err != nil {
		return nil, err
	}
	if err := verifySignature(ak, q.Attest, q.Signature); err != nil {
		return nil, err
	}
	f, err := q.Attested(nonce)
	if err != nil {
		return nil, err
	}
	v := &Verified{Facts: f}
	return v, v.replay(q.Log)
}

// verifySignature verifies ECDSA on P-256 by SHA-256, which attestation keys of latchguest use.
func verifySignature(ak *tpm2.TPMTPublic, attest, signature []byte) error {
	pub, err := tpm2.Pub(*ak)
	if err != nil {
		return fmt.Errorf("%w: %w", quote.ErrKey, err)
	}
	key, ok := pub.(*ecdsa.PublicKey)
	if !ok {
		return fmt.Errorf("%w: it is %T, must be on P-256", quote.ErrKey, pub)
	}
	s, err := tpm2.Unmarshal[tpm2.TPMTSignature](signature)
	if err != nil {
		return fmt.Errorf("%w: its signature: %w", quote.ErrQuote, err)
	}
	ecc, err := s.Signature.ECDSA()
	if err != nil || ecc.Hash != tpm2.TPMAlgSHA256 {
		return fmt.Errorf("%w: its signature is not ECDSA by SHA-256", quote.ErrQuote)
	}
	sum := sha256.Sum256(attest)
	r, v := new(big.Int).SetBytes(ecc.SignatureR.Buffer), new(big.Int).SetBytes(ecc.SignatureS.Buffer)
	if !ecdsa.Verify(key, sum[:], r, v) {
		return fmt.Errorf("%w: its signature is wrong", quote.ErrQuote)
	}
	return nil
}

// replay reads the log, which must lead to the registers. Registers that a running system extends
// without this log (10 by IMA, 11 and 15 by systemd) may have gone on.
func (f *Verified) replay(b []byte) error {
	if b == nil {
		return nil
	}
	log, err := eventlog.Parse(b)
	if err != nil {
		return fmt.Errorf("%w: its log: %w", quote.ErrQuote, err)
	}
	values, err := log.Replay(f.Selection.Bank)
	if err != nil {
		return fmt.Errorf("%w: its log: %w", quote.ErrQuote, err)
	}
	for _, n := range f.Selection.PCRs {
		if n <= lastFirmware && n < len(values) && !bytes.Equal(values[n], f.Values[n]) {
			return fmt.Errorf("%w: its log does not lead to PCR %d", quote.ErrQuote, n)
		}
	}
	f.Log = log
	return nil
}

// lastFirmware is the last register that only firmware, loaders and Linux's stub extend (TCG PC
// Client Platform Firmware Profile, section 3.3.4).
const lastFirmware = 9
