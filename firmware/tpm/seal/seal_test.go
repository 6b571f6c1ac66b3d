//go:build !quick

package seal

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/luks/metadata"
	"github.com/vmlatch/vmlatch/firmware/tpm"
	"github.com/vmlatch/vmlatch/firmware/tpm/tpmtest"
)

var secret = []byte("correct horse battery staple")

// booted is a TPM whose PCR 4 and 9 have been extended, with its key and registers.
func booted(t *testing.T) (*tpm.Conn, *tpm2.TPMTPublic, tpm.Selection, map[int][]byte) {
	c := tpmtest.Open(t, tpmtest.Start(t))
	tpmtest.Define(t, c, tpm.CounterPublic())
	for _, pcr := range []int{4, 9} {
		if err := c.ExtendPCR(pcr, []byte("kernel")); err != nil {
			t.Fatal(err)
		}
	}
	p, err := OpenParent(c)
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	s, err := tpm.ParseSelection(eventlog.SHA256, "15, 9,4")
	if err != nil {
		t.Fatal(err)
	}
	values, err := c.ReadPCRs(s)
	if err != nil {
		t.Fatal(err)
	}
	return c, p.Public(), s, values
}

// again is what a file gives back.
func again(t *testing.T, s *Sealed) *Sealed {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if s, err = ParseSealed(b); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestRegisters: what is sealed to registers is given to the boot that has them, and to no other.
func TestRegisters(t *testing.T) {
	c, srk, s, values := booted(t)
	sealed, err := Seal(rand.Reader, srk, secret, &Policy{Name: "web", Selection: s, Values: values})
	if err != nil {
		t.Fatal(err)
	}
	sealed = again(t, sealed)
	got, err := sealed.Unseal(c, nil)
	if err != nil || !bytes.Equal(got, secret) {
		t.Fatalf("got %q, %v", got, err)
	}
	for i := range 10 { // nothing is left in the TPM, which has room for three objects
		if _, err := sealed.Unseal(c, nil); err != nil {
			t.Fatalf("time %d: %v", i, err)
		}
	}
	if err := c.ExtendPCR(ClosingPCR, []byte(Closing)); err != nil {
		t.Fatal(err)
	}
	if _, err := sealed.Unseal(c, nil); !errors.Is(err, tpm2.TPMRCPolicyFail) ||
		!strings.Contains(err.Error(), "closed the TPM") {
		t.Errorf("closed: %v", err)
	}
	// The TPM itself refuses, whatever the file says.
	now, err := c.ReadPCRs(s)
	if err != nil {
		t.Fatal(err)
	}
	sealed.PCRs = hexes(s, now)
	if _, err := sealed.Unseal(c, nil); !errors.Is(err, tpm2.TPMRCPolicyFail) {
		t.Errorf("values of the file changed: %v", err)
	}
}

// TestApprovals: a key approves boots, one after the other, and the counter ends older approvals.
func TestApprovals(t *testing.T) {
	c, srk, s, first := booted(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := Seal(rand.Reader, srk, secret, &Policy{Name: "web", Approver: key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	sealed = again(t, sealed)
	if _, err := sealed.Unseal(c, nil); !errors.Is(err, tpm2.TPMRCPolicyFail) {
		t.Errorf("without an approval: %v", err)
	}
	approve := func(key *ecdsa.PrivateKey, name string, version uint64, values map[int][]byte) *Approval {
		a, err := Approve(rand.Reader, key, name, version, s, values)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(a)
		if err == nil {
			a, err = ParseApproval(b)
		}
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	start, err := Count(c)
	if err != nil || start != 1 {
		t.Fatalf("the counter begins at %d, %v", start, err)
	}
	old := approve(key, "web", 1, first)
	if got, err := sealed.Unseal(c, []*Approval{old}); err != nil || !bytes.Equal(got, secret) {
		t.Fatalf("approved: %q, %v", got, err)
	}

	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	stranger := approve(other, "web", 1, first)
	forged := *stranger
	forged.Approver = old.Approver
	later := *old
	later.Version = 2
	damaged := *old
	damaged.Signature = bytes.Clone(old.Signature)
	damaged.Signature[len(damaged.Signature)-1] ^= 1
	for what, a := range map[string]*Approval{
		"another key": stranger, "another key under this one's name": &forged,
		"another name":                  approve(key, "db", 1, first),
		"a version that was not signed": &later, "a damaged signature": &damaged,
	} {
		if got, err := sealed.Unseal(c, []*Approval{a}); err == nil {
			t.Errorf("%s: opens: %q", what, got)
		}
	}

	if err := c.ExtendPCR(9, []byte("a new initrd")); err != nil { // a new kernel booted
		t.Fatal(err)
	}
	second, err := c.ReadPCRs(s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sealed.Unseal(c, []*Approval{old}); !errors.Is(err, tpm2.TPMRCPolicyFail) {
		t.Errorf("a new kernel by the old approval: %v", err)
	}
	fresh := approve(key, "web", 2, second)
	if got, err := sealed.Unseal(c, []*Approval{old, fresh}); err != nil || !bytes.Equal(got, secret) {
		t.Fatalf("a new kernel, approved: %q, %v", got, err)
	}
	if n, err := EndBelow(c, 3); n != 3 || err != nil {
		t.Fatalf("the counter is %d, %v", n, err)
	}
	_, err = sealed.Unseal(c, []*Approval{fresh})
	if !errors.Is(err, tpm2.TPMRCPolicy) || !strings.Contains(err.Error(), "was ended") {
		t.Errorf("an approval that was ended: %v", err)
	}
	if n, err := EndBelow(c, 2); n != 3 || err != nil {
		t.Errorf("back to 2: %d, %v", n, err)
	}
}

// TestKept: a secret of the TPM's keeper is given after any boot, by this TPM alone; it is not
// one that was sealed to a boot, nor the reverse.
func TestKept(t *testing.T) {
	c, srk, s, values := booted(t)
	kept, err := Seal(rand.Reader, srk, secret, &Policy{Name: "broker", Kept: true})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(kept)
	if err != nil {
		t.Fatal(err)
	}
	if kept, err = ParseKept(b); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if err := c.ExtendPCR(4, []byte("another boot")); err != nil {
			t.Fatal(err)
		}
		if got, err := kept.Unseal(c, nil); err != nil || !bytes.Equal(got, secret) {
			t.Fatalf("%q, %v", got, err)
		}
	}
	if _, err := ParseSealed(b); !errors.Is(err, ErrFormat) {
		t.Errorf("it is taken for one that is sealed to a boot: %v", err)
	}
	sealed, err := Seal(rand.Reader, srk, secret, &Policy{Name: "web", Selection: s, Values: values})
	if err != nil {
		t.Fatal(err)
	}
	sealed.Type, sealed.PCRs = TypeKept, nil
	if got, err := sealed.Unseal(c, nil); err == nil {
		t.Errorf("what is sealed to a boot is given without it: %q", got)
	}
	other, _, _, _ := booted(t)
	if got, err := kept.Unseal(other, nil); err == nil {
		t.Errorf("another TPM: %q", got)
	}
}

// TestOtherTPM: what is sealed to one TPM is refused by another with words that say so, and not
// given by it when the file lies.
func TestOtherTPM(t *testing.T) {
	_, srk, s, values := booted(t)
	sealed, err := Seal(rand.Reader, srk, secret, &Policy{Name: "web", Selection: s, Values: values})
	if err != nil {
		t.Fatal(err)
	}
	c, other, _, _ := booted(t)
	if _, err := sealed.Unseal(c, nil); err == nil || !strings.Contains(err.Error(), "sealed to another TPM") {
		t.Errorf("another TPM: %v", err)
	}
	name, err := tpm2.ObjectName(other)
	if err != nil {
		t.Fatal(err)
	}
	sealed.SRK = name.Buffer
	if got, err := sealed.Unseal(c, nil); !errors.Is(err, tpm2.TPMRCIntegrity) {
		t.Errorf("the file lies: %q, %v", got, err)
	}
	sealed.Private[5] ^= 1
	if got, err := sealed.Unseal(c, nil); err == nil {
		t.Errorf("damaged: %q", got)
	}
}

// TestStorageKeyAppears: what was sealed before something else kept a storage root key is given
// after.
func TestStorageKeyAppears(t *testing.T) {
	c, srk, s, values := booted(t)
	sealed, err := Seal(rand.Reader, srk, secret, &Policy{Name: "web", Selection: s, Values: values})
	if err != nil {
		t.Fatal(err)
	}
	r, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.EvictControl{
		Auth: tpm2.TPMRHOwner, ObjectHandle: &tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name},
		PersistentHandle: tpm.HandleSRK,
	}).Execute(c); err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.FlushContext{FlushHandle: r.ObjectHandle}).Execute(c); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(r.Name.Buffer, sealed.SRK) {
		t.Fatal("the key that is kept is the one that was sealed to")
	}
	for range 5 {
		if got, err := sealed.Unseal(c, nil); err != nil || !bytes.Equal(got, secret) {
			t.Fatalf("%q, %v", got, err)
		}
	}
}

// TestDisk: of a disk's tokens the one counts that has the pin; damaged ones, and those of other
// secrets, do not keep it out.
func TestDisk(t *testing.T) {
	c, srk, s, values := booted(t)
	token := func(secret string) json.RawMessage {
		x, err := Seal(rand.Reader, srk, []byte(secret), &Policy{Name: "web", Selection: s, Values: values})
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(x)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	const old, wanted = "the old secret of a disk", "the new secret of a disk"
	pin, err := Pin([]byte(wanted))
	if err != nil {
		t.Fatal(err)
	}
	m := &metadata.Metadata{Tokens: []json.RawMessage{
		[]byte(
			`{"type":"systemd-tpm2","tpm2-blob":["AA"]}`,
		), []byte(`{"type":"systemd-tpm2","tpm2-blob":"AA","tpm2-pcrs":[99]}`),
		[]byte(`{"type":"latchkey-tpm"}`), token(old), token(wanted),
	}}
	if got, err := UnsealDisk(c, m, pin); err != nil || string(got) != wanted {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := UnsealDisk(c, m, ""); err != nil || string(got) != old {
		t.Errorf("without a pin: %q, %v", got, err)
	}
	m.Tokens = m.Tokens[:4]
	if got, err := UnsealDisk(c, m, pin); !errors.Is(err, ErrPin) {
		t.Errorf("the old one alone: %q, %v", got, err)
	}
	m.Tokens = m.Tokens[:3]
	if got, err := UnsealDisk(c, m, pin); !errors.Is(err, ErrFormat) {
		t.Errorf("damaged ones alone: %q, %v", got, err)
	}
	m.Tokens = nil
	if got, err := UnsealDisk(c, m, pin); !errors.Is(err, ErrNoToken) {
		t.Errorf("none: %q, %v", got, err)
	}
}

// TestClear: TPM2_Clear makes a new storage root key.
func TestClear(t *testing.T) {
	c, srk, s, values := booted(t)
	sealed, err := Seal(rand.Reader, srk, secret, &Policy{Name: "web", Selection: s, Values: values})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.Clear{AuthHandle: tpm2.TPMRHPlatform}).Execute(c); err != nil {
		t.Fatal(err)
	}
	if got, err := sealed.Unseal(c, nil); err == nil || !strings.Contains(err.Error(), "before it was cleared") {
		t.Errorf("%q, %v", got, err)
	}
}
