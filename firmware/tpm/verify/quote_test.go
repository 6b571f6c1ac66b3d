//go:build !quick

package verify

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/tpm"
	"github.com/vmlatch/vmlatch/firmware/tpm/quote"
	"github.com/vmlatch/vmlatch/firmware/tpm/seal"
	"github.com/vmlatch/vmlatch/firmware/tpm/tpmtest"
)

var nonce = []byte("0123456789abcdef")

// enrolled is a TPM whose attestation key its owner has come to know.
func enrolled(t *testing.T) (*tpm.Conn, *quote.Identity, *quote.AK) {
	c := tpmtest.Open(t, tpmtest.Start(t))
	id, err := quote.Read(c)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(id)
	if err == nil {
		id, err = quote.ParseIdentity(b)
	}
	if err != nil {
		t.Fatal(err)
	}
	cred, pending, err := quote.Challenge(rand.Reader, id)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := quote.Activate(c, cred)
	if err != nil {
		t.Fatal(err)
	}
	ak, err := pending.Check(answer)
	if err != nil {
		t.Fatal(err)
	}
	return c, id, ak
}

func selection(t *testing.T, text string) tpm.Selection {
	s, err := tpm.ParseSelection(eventlog.SHA256, text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestQuote: a quote verifies with its key and challenge, and with no others.
func TestQuote(t *testing.T) {
	c, id, ak := enrolled(t)
	if err := c.ExtendPCR(4, []byte("kernel")); err != nil {
		t.Fatal(err)
	}
	s := selection(t, "0,4,9,15")
	q, err := quote.Make(c, nonce, s, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(q)
	if err == nil {
		q, err = quote.ParseQuote(b)
	}
	if err != nil {
		t.Fatal(err)
	}
	f, err := Verify(q, ak, nonce)
	if err != nil {
		t.Fatal(err)
	}
	now, err := c.ReadPCRs(s)
	if err != nil {
		t.Fatal(err)
	}
	for n, v := range now {
		if !bytes.Equal(f.Values[n], v) {
			t.Errorf("PCR %d: %x, want %x", n, f.Values[n], v)
		}
	}
	again, err := quote.Read(c)
	if err != nil || !bytes.Equal(again.AK, id.AK) || !bytes.Equal(again.EK, id.EK) {
		t.Errorf("the keys do not stay: %v", err)
	}

	_, _, other := enrolled(t)
	forged := *q
	forged.AK = other.AK
	for what, x := range map[string]struct {
		q     *quote.Quote
		ak    *quote.AK
		nonce []byte
	}{
		"another challenge": {q, ak, []byte("another challenge")}, "a short challenge": {q, ak, []byte("short")},
		"another key": {q, other, nonce}, "another key that it names": {&forged, other, nonce},
	} {
		if _, err := Verify(x.q, x.ak, x.nonce); !errors.Is(err, quote.ErrQuote) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, change := range map[string]func(q *quote.Quote){
		"a value": func(q *quote.Quote) {
			q.PCRs = seal.Values{"0": q.PCRs["0"], "4": q.PCRs["9"], "9": q.PCRs["9"], "15": q.PCRs["15"]}
		},
		"one less": func(q *quote.Quote) { q.PCRs = seal.Values{"0": q.PCRs["0"], "4": q.PCRs["4"], "9": q.PCRs["9"]} },
		"one more": func(q *quote.Quote) {
			q.PCRs = seal.Values{
				"0": q.PCRs["0"], "4": q.PCRs["4"], "9": q.PCRs["9"], "15": q.PCRs["15"],
				"14": q.PCRs["15"],
			}
		},
		"another bank":     func(q *quote.Quote) { q.Bank = "sha1" },
		"a log of nothing": func(q *quote.Quote) { q.Log = []byte{} },
	} {
		x := *q
		change(&x)
		if _, err := Verify(&x, ak, nonce); !errors.Is(err, quote.ErrQuote) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range q.Attest { // each bit is signed
		x := *q
		x.Attest = bytes.Clone(q.Attest)
		x.Attest[i] ^= 1
		if _, err := Verify(&x, ak, nonce); !errors.Is(err, quote.ErrQuote) {
			t.Errorf("byte %d: %v", i, err)
		}
	}
}

// TestKindsOfAttestation: what an attestation key signs besides quotes is none, nor what another
// kind of key signs.
func TestKindsOfAttestation(t *testing.T) {
	c, id, ak := enrolled(t)
	const handleAK tpm2.TPMHandle = 0x8100ac01
	k, err := tpm2.ReadPublic{ObjectHandle: handleAK}.Execute(c)
	if err != nil {
		t.Fatal(err)
	}
	auth := tpm2.AuthHandle{Handle: handleAK, Name: k.Name, Auth: tpm2.PasswordAuth(nil)}
	bound := sha256.Sum256(nonce)
	r, err := tpm2.Certify{
		ObjectHandle: auth, SignHandle: auth, QualifyingData: tpm2.TPM2BData{Buffer: bound[:]},
		InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
	}.Execute(c)
	if err != nil {
		t.Fatal(err)
	}
	q, err := quote.Make(c, nonce, selection(t, "4"), nil)
	if err != nil {
		t.Fatal(err)
	}
	q.Attest, q.Signature = r.CertifyInfo.Bytes(), tpm2.Marshal(r.Signature)
	if _, err := Verify(q, ak, nonce); !errors.Is(err, quote.ErrQuote) {
		t.Errorf("a certificate for a key: %v", err)
	}

	// A key of software, that the host could have: it signs whatever it likes.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p, err := quote.Public(ak.AK)
	if err != nil {
		t.Fatal(err)
	}
	p.ObjectAttributes.Restricted = false
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
	})
	loose := &quote.AK{Schema: quote.SchemaAK, AK: tpm2.Marshal(*p)}
	if q, err = quote.Make(c, nonce, selection(t, "4"), nil); err != nil {
		t.Fatal(err)
	}
	q.AK, q.Signature = loose.AK, signature(t, key, q.Attest)
	if _, err := Verify(q, loose, nonce); !errors.Is(err, quote.ErrKey) {
		t.Errorf("a key that is not restricted: %v", err)
	}
	if _, _, err := quote.Challenge(rand.Reader, &quote.Identity{EK: id.EK, AK: loose.AK}); !errors.Is(
		err,
		quote.ErrKey,
	) {
		t.Errorf("a challenge for it: %v", err)
	}
}

func signature(t *testing.T, key *ecdsa.PrivateKey, data []byte) []byte {
	t.Helper()
	sum := sha256.Sum256(data)
	der, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &rs); err != nil {
		t.Fatal(err)
	}
	return tpm2.Marshal(tpm2.TPMTSignature{
		SigAlg: tpm2.TPMAlgECDSA,
		Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
			Hash: tpm2.TPMAlgSHA256,
			SignatureR: tpm2.TPM2BECCParameter{
				Buffer: rs.R.Bytes(),
			}, SignatureS: tpm2.TPM2BECCParameter{Buffer: rs.S.Bytes()},
		}),
	})
}

// TestChallenge: only the TPM with both keys can answer.
func TestChallenge(t *testing.T) {
	c, id, _ := enrolled(t)
	other, strange, _ := enrolled(t)
	mixed := &quote.Identity{EK: id.EK, AK: strange.AK} // the keys of two TPMs
	cred, pending, err := quote.Challenge(rand.Reader, mixed)
	if err != nil {
		t.Fatal(err)
	}
	for what, x := range map[string]*tpm.Conn{"that of the EK": c, "that of the AK": other} {
		if answer, err := quote.Activate(x, cred); err == nil {
			t.Errorf("%s answers %s", what, answer)
		}
	}
	zero := hex.EncodeToString(make([]byte, 32))
	for _, answer := range []string{"", "zz", zero, pending.Answer} {
		if _, err := pending.Check(answer); !errors.Is(err, quote.ErrKey) {
			t.Errorf("%q: %v", answer, err)
		}
	}
	if err := Certificate(id, x509.NewCertPool(), time.Now()); !errors.Is(err, quote.ErrKey) {
		t.Errorf("without a certificate: %v", err)
	}
}
