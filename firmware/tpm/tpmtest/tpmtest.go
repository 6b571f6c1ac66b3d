// Package tpmtest has a TPM for tests: swtpm, behind a socket, as others use it too.
package tpmtest

import (
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/vmlatch/vmlatch/firmware/tpm"
)

// Start starts a new TPM, which ends with the test, and returns its socket.
func Start(t testing.TB) string {
	t.Helper()
	return StartOn(t, t.TempDir())
}

// StartOn starts a TPM whose state is in a directory.
func StartOn(t testing.TB, state string) string {
	t.Helper()
	program, err := exec.LookPath("swtpm")
	if err != nil {
		t.Skipf("%v: run make setup", err)
	}
	socket := filepath.Join(t.TempDir(), "tpm")
	cmd := exec.Command(program, "socket", "--tpm2", "--tpmstate", "dir="+state, "--server", "type=unixio,path="+socket,
		"--ctrl", "type=unixio,path="+socket+".ctrl", "--flags", "not-need-init,startup-clear")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		c, err := tpm.Open(socket)
		if err == nil {
			_ = c.Close()
			return socket
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// Open opens a TPM for the rest of a test.
func Open(t testing.TB, name string) *tpm.Conn {
	t.Helper()
	c, err := tpm.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Define makes an index of its memory, with the platform's right, and increments it once if it is a
// counter.
func Define(t testing.TB, c *tpm.Conn, public tpm2.TPMSNVPublic) {
	t.Helper()
	if _, err := (tpm2.NVDefineSpace{
		AuthHandle: tpm2.TPMRHPlatform, PublicInfo: tpm2.New2B(public),
	}).Execute(c); err != nil {
		t.Fatal(err)
	}
	name, err := tpm2.NVName(&public)
	if err != nil {
		t.Fatal(err)
	}
	if public.Attributes.NT != tpm2.TPMNTCounter {
		return
	}
	if _, err := (tpm2.NVIncrement{
		AuthHandle: tpm2.AuthHandle{Handle: public.NVIndex, Name: *name, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    &tpm2.NamedHandle{Handle: public.NVIndex, Name: *name},
	}).Execute(c); err != nil {
		t.Fatal(err)
	}
}
