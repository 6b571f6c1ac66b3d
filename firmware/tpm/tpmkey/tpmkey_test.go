//go:build !quick

package tpmkey

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/vmlatch/vmlatch/firmware/tpm"
	"github.com/vmlatch/vmlatch/firmware/tpm/tpmtest"
)

func open(t *testing.T, socket string) *tpm.Conn {
	t.Helper()
	c, err := tpm.Open(socket)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestKeys: a key signs in its TPM, again and again, and in no other.
func TestKeys(t *testing.T) {
	socket, other := tpmtest.Start(t), tpmtest.Start(t)
	for curve := range curves {
		c := open(t, socket)
		b, err := Make(c, curve)
		if err != nil {
			t.Fatal(err)
		}
		if !IsFile(b) {
			t.Errorf("not a file: %s", b)
		}
		_ = c.Close()
		for range 20 { // more than a TPM has room for
			c := open(t, socket)
			k, err := Load(c, b)
			if err != nil {
				t.Fatal(err)
			}
			digest, hash := sha512.Sum384([]byte("block")), crypto.SHA384
			sum := digest[:]
			if curve == elliptic.P256() {
				d := sha256.Sum256([]byte("block"))
				sum, hash = d[:], crypto.SHA256
			}
			signature, err := k.Sign(rand.Reader, sum, hash)
			public, ok := k.Public().(*ecdsa.PublicKey)
			if err != nil || !ok || public.Curve != curve || !ecdsa.VerifyASN1(public, sum, signature) {
				t.Errorf("%s: %v", curve.Params().Name, err)
			}
			if err := errors.Join(k.Flush(), c.Close()); err != nil {
				t.Error(err)
			}
		}
		c = open(t, other)
		if _, err := Load(c, b); !errors.Is(err, tpm2.TPMRCIntegrity) {
			t.Errorf("%s: another TPM: %v", curve.Params().Name, err)
		}
		for i := 40; i < len(b)-40; i += 7 {
			x := append([]byte{}, b...)
			x[i] ^= 1
			if k, err := Load(c, x); err == nil {
				t.Errorf("byte %d: loaded %v", i, k)
			}
		}
		_ = c.Close()
	}
}

// TestRefused: what cannot be a key of an owner.
func TestRefused(t *testing.T) {
	c := open(t, tpmtest.Start(t))
	defer c.Close()
	if err := Probe(c, elliptic.P521()); !errors.Is(err, ErrKey) {
		t.Errorf("P-521: %v", err)
	}
	if _, err := Kept(c, 0x81000099); !errors.Is(err, tpm2.TPMRCHandle) {
		t.Errorf("nothing: %v", err)
	}
	r, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Kept(c, uint32(r.ObjectHandle)); !errors.Is(err, ErrKey) {
		t.Errorf("a storage key: %v", err)
	}
}

// TestNoCurve: a TPM without P-384 is named.
func TestNoCurve(t *testing.T) {
	const rcCurve = 0x1e6 // TPM_RC_CURVE of the first parameter
	c := tpm.New(tpmtest.Answering(t, tpmtest.Answer(rcCurve, 10)))
	var e *tpm.Error
	if err := Probe(c, elliptic.P384()); !errors.As(err, &e) || e.Cause != "this TPM has no keys on P-384" {
		t.Errorf("%v", err)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte("-----BEGIN TSS2 PRIVATE KEY-----\nMAA=\n-----END TSS2 PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := Load(tpm.New(tpmtest.Answering(t)), b); err == nil {
			t.Errorf("loaded %v", k)
		}
	})
}
