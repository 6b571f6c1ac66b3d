//go:build !quick

package tpm_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/vmlatch/vmlatch/firmware/tpm"
	"github.com/vmlatch/vmlatch/firmware/tpm/tpmtest"
)

// explained checks that a TPM's refusal says its cause and what helps.
func explained(t *testing.T, err error, cause string) {
	t.Helper()
	var e *tpm.Error
	if err = tpm.Explain("try", err); !errors.As(err, &e) || !strings.Contains(e.Cause, cause) || e.Fix == "" {
		t.Errorf("%v, want %q", err, cause)
	}
}

// TestFull: a TPM whose memory is full says so.
func TestFull(t *testing.T) {
	c := tpmtest.Open(t, tpmtest.Start(t))
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		_, err = tpm2.NVDefineSpace{
			AuthHandle: tpm2.TPMRHOwner,
			PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
				NVIndex: tpm2.TPMHandle(0x01500000 + i), NameAlg: tpm2.TPMAlgSHA256, DataSize: 2048,
				Attributes: tpm2.TPMANV{OwnerRead: true, OwnerWrite: true, NoDA: true},
			}),
		}.Execute(c)
	}
	explained(t, err, "its memory is full")
}

// TestLockout: a TPM that was asked with wrong passwords too often says so.
func TestLockout(t *testing.T) {
	c := tpmtest.Open(t, tpmtest.Start(t))
	index := tpm2.TPMSNVPublic{
		NVIndex: 0x01500000, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8,
		Attributes: tpm2.TPMANV{AuthRead: true, AuthWrite: true},
	}
	if _, err := (tpm2.NVDefineSpace{
		AuthHandle: tpm2.TPMRHOwner, Auth: tpm2.TPM2BAuth{Buffer: []byte("right")}, PublicInfo: tpm2.New2B(index),
	}).Execute(c); err != nil {
		t.Fatal(err)
	}
	name, err := tpm2.NVName(&index)
	if err != nil {
		t.Fatal(err)
	}
	write := func(password string) error {
		_, err := tpm2.NVWrite{
			AuthHandle: tpm2.AuthHandle{Handle: index.NVIndex, Name: *name, Auth: tpm2.PasswordAuth([]byte(password))},
			NVIndex:    &tpm2.NamedHandle{Handle: index.NVIndex, Name: *name},
			Data:       tpm2.TPM2BMaxNVBuffer{Buffer: make([]byte, 8)},
		}.Execute(c)
		return err
	}
	explained(t, write("wrong"), "the password is wrong")
	for range 100 {
		if err = write("wrong"); errors.Is(err, tpm2.TPMRCLockout) {
			break
		}
	}
	explained(t, err, "it is locked")
	explained(t, write("right"), "it is locked")
}

// TestRoom: a TPM without a resource manager has room for a few keys, and says when it is used up.
func TestRoom(t *testing.T) {
	c := tpmtest.Open(t, tpmtest.Start(t))
	var err error
	for i := 0; err == nil && i < 10; i++ {
		_, err = tpm2.CreatePrimary{
			PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate),
		}.Execute(c)
	}
	explained(t, err, "no room for further keys")
}

// TestDevices: what looks like a TPM's device and is none.
func TestDevices(t *testing.T) {
	c, err := tpm.Open("/dev/zero") // answers for ever
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err = c.Send(ask); !errors.Is(err, tpm.ErrAnswer) {
		t.Errorf("/dev/zero: %v", err)
	}
	none, err := tpm.Open("/dev/null") // answers with nothing
	if err != nil {
		t.Fatal(err)
	}
	defer none.Close()
	if _, err = none.Send(ask); err == nil {
		t.Error("/dev/null answers")
	}
}
