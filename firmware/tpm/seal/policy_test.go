package seal

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/tpm"
)

func TestCheckSelection(t *testing.T) {
	for _, c := range []struct {
		pcrs       string
		secureBoot bool
		ok         bool
	}{
		{"4,7,9,15", false, true},
		{"4,9", false, true},
		{"11", false, true},
		{"7", true, true},
		{"7", false, false},
		{"7,15", false, false},
		{"15", true, false},
		{"1,4", true, false},
		{"4,5,9", true, false},
		{"4,10", true, false},
	} {
		s, err := tpm.ParseSelection(eventlog.SHA256, c.pcrs)
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckSelection(s, c.secureBoot); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrPolicy) {
			t.Errorf("%s, Secure Boot %t: %v", c.pcrs, c.secureBoot, err)
		}
	}
}

// aStorageKey is a storage root key, as a TPM would have it.
func aStorageKey(t *testing.T) tpm2.TPMTPublic {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := approver(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	srk := tpm.SRKTemplate()
	srk.Unique = public.Unique
	return srk
}

// TestSealRefuses: what no TPM could give back, or nothing protects, is not sealed.
func TestSealRefuses(t *testing.T) {
	srk := aStorageKey(t)
	s := tpm.Selection{Bank: eventlog.SHA256, PCRs: []int{4}}
	good := map[int][]byte{4: make([]byte, 32)}
	if _, err := Seal(rand.Reader, &srk, []byte("x"), &Policy{Name: "web", Selection: s, Values: good}); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		secret []byte
		p      Policy
	}{
		"no secret":       {nil, Policy{Name: "web", Selection: s, Values: good}},
		"a long secret":   {make([]byte, MaxSecret+1), Policy{Name: "web", Selection: s, Values: good}},
		"no name":         {[]byte("x"), Policy{Selection: s, Values: good}},
		"a missing value": {[]byte("x"), Policy{Name: "web", Selection: s}},
		"a short value":   {[]byte("x"), Policy{Name: "web", Selection: s, Values: map[int][]byte{4: {1}}}},
		"an odd key":      {[]byte("x"), Policy{Name: "web", Approver: "key"}},
	} {
		if _, err := Seal(rand.Reader, &srk, c.secret, &c.p); err == nil {
			t.Errorf("%s: sealed", what)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Approve(rand.Reader, key, "web", 1, s, good); !errors.Is(err, ErrKey) {
		t.Errorf("P-384: %v", err)
	}
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	for _, version := range []uint64{0, MaxVersion + 1} {
		if _, err := Approve(rand.Reader, key, "web", version, s, good); !errors.Is(err, ErrPolicy) {
			t.Errorf("version %d: %v", version, err)
		}
	}
}

// TestReadSRK: keys that are not storage keys of a TPM are refused.
func TestReadSRK(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signing, err := approver(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	fine := aStorageKey(t)
	if _, err := ReadSRK(tpm2.Marshal(fine)); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSRK(tpm2.Marshal(tpm2.New2B(fine))); err != nil {
		t.Fatal(err)
	}
	loose := fine
	loose.ObjectAttributes.FixedTPM = false
	for what, p := range map[string]tpm2.TPMTPublic{"a signing key": *signing, "a key that may leave": loose} {
		if _, err := ReadSRK(tpm2.Marshal(p)); !errors.Is(err, ErrKey) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := ReadSRK(append(tpm2.Marshal(fine), 0)); !errors.Is(err, ErrKey) {
		t.Errorf("a byte too many: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"type":"latchkey-tpm","name":"web","bank":"sha256","pcrs":{"4":"00"}}`), []byte{0, 1})
	f.Fuzz(func(t *testing.T, b, key []byte) {
		if s, err := ParseSealed(b); err == nil {
			_, _, _ = s.PCRs.Registers(s.Bank)
		}
		_, _ = ParseEnrolled(b)
		if a, err := ParseApproval(b); err == nil {
			_, _, _ = a.PCRs.Registers(a.Bank)
		}
		_, _ = ReadSRK(key)
	})
}
