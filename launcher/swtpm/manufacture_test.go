//go:build !quick

package swtpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/tpm"
)

var keeper = []string{"/proc/self/exe", "main"}

func program(t testing.TB) string {
	t.Helper()
	path, err := Find()
	if err != nil {
		t.Skipf("%v: run make setup", err)
	}
	return path
}

func open(t testing.TB, dir string) *os.File {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// TestMake: a new TPM has the banks, keys, certificates and counter that it is to have, and keeps
// them; its state is encrypted if there is a key.
func TestMake(t *testing.T) {
	for what, key := range map[string][]byte{"plain": nil, "encrypted": bytes.Repeat([]byte{7}, 32)} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			var keys []crypto.PublicKey
			cert := bytes.Repeat([]byte("certificate "), 120) // longer than one write takes
			m := &Maker{
				Keeper: keeper, Program: program(t), Banks: []eventlog.Bank{eventlog.SHA256},
				Certify: func(k crypto.PublicKey, about About) ([]byte, error) {
					if about.Manufacturer != 0x49424d00 || about.Model == "" || about.Revision < 138 { // "IBM"
						t.Errorf("it says of itself %+v", about)
					}
					keys = append(keys, k)
					return cert, nil
				},
			}
			if err := m.Make(context.Background(), open(t, dir), key); err != nil {
				t.Fatal(err)
			}
			if got, err := Encrypted(filepath.Join(dir, "tpm2-00.permall")); got != (key != nil) || err != nil {
				t.Errorf("encrypted: %t, %v", got, err)
			}
			if len(keys) != 2 {
				t.Fatalf("%d keys are certified, want 2", len(keys))
			}
			if k, ok := keys[0].(*rsa.PublicKey); !ok || k.N.BitLen() != 2048 {
				t.Errorf("the first key is %T", keys[0])
			}
			if k, ok := keys[1].(*ecdsa.PublicKey); !ok || k.Curve.Params().Name != "P-256" {
				t.Errorf("the second key is %T", keys[1])
			}

			p, err := run(context.Background(), keeper, program(t), open(t, dir), key)
			if err != nil {
				t.Fatal(err)
			}
			defer p.kill()
			if _, err := (tpm2.Startup{StartupType: tpm2.TPMSUClear}).Execute(p); err != nil {
				t.Fatal(err)
			}
			for _, h := range []tpm2.TPMHandle{tpm.HandleSRK, HandleEKRSA, HandleEKECC} {
				if _, err := (tpm2.ReadPublic{ObjectHandle: h}).Execute(p); err != nil {
					t.Errorf("handle %#x: %v", h, err)
				}
			}
			for bank, want := range map[tpm2.TPMIAlgHash]int{
				tpm2.TPMAlgSHA256: 1, tpm2.TPMAlgSHA1: 0, tpm2.TPMAlgSHA384: 0,
			} {
				r, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{
					{Hash: bank, PCRSelect: tpm2.PCClientCompatible.PCRs(0)},
				}}}.Execute(p)
				if err != nil || len(r.PCRValues.Digests) != want {
					t.Errorf("bank %#x: %+v, %v, want %d values", bank, r, err, want)
				}
			}
			read := func(index tpm2.TPMHandle, size, at uint16) []byte {
				t.Helper()
				name, err := p.name(index)
				if err != nil {
					t.Fatal(err)
				}
				r, err := tpm2.NVRead{
					AuthHandle: tpm2.AuthHandle{Handle: index, Name: name.Name, Auth: tpm2.PasswordAuth(nil)},
					NVIndex:    name, Size: size, Offset: at,
				}.Execute(p)
				if err != nil {
					t.Fatalf("index %#x: %v", index, err)
				}
				return r.Data.Buffer
			}
			got := append(read(IndexCertECC, 1024, 0), read(IndexCertECC, uint16(len(cert)-1024), 1024)...)
			if !bytes.Equal(got, cert) {
				t.Errorf("the certificate reads %d bytes, want %d", len(got), len(cert))
			}
			first := read(tpm.Counter, 8, 0)
			name, _ := p.name(tpm.Counter)
			undefine := tpm2.NVUndefineSpace{AuthHandle: tpm2.TPMRHOwner, NVIndex: name}
			if _, err := undefine.Execute(p); err == nil {
				t.Error("the owner, as whom every guest acts, removes the counter")
			}
			undefine.AuthHandle = tpm2.TPMRHPlatform
			if _, err := undefine.Execute(p); err == nil {
				t.Error("the platform removes the counter")
			}
			_, err = tpm2.NVIncrement{
				AuthHandle: tpm2.AuthHandle{Handle: tpm.Counter, Name: name.Name, Auth: tpm2.PasswordAuth(nil)},
				NVIndex:    name,
			}.Execute(p)
			if second := read(tpm.Counter, 8, 0); err != nil || second[7] != first[7]+1 {
				t.Errorf("the counter goes from %x to %x, %v", first, second, err)
			}
			if err := p.stop(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestMakeFails: errors say what swtpm says, and leave no process.
func TestMakeFails(t *testing.T) {
	m := &Maker{Keeper: keeper, Program: program(t), Banks: []eventlog.Bank{eventlog.SHA256}}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "tpm2-00.permall"), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.Make(context.Background(), open(t, dir), nil); !errors.Is(err, ErrTPM) {
		t.Errorf("damaged state: %v, want ErrTPM", err)
	}
	refuses := errors.New("no certificate today")
	m.Certify = func(crypto.PublicKey, About) ([]byte, error) { return nil, refuses }
	if err := m.Make(context.Background(), open(t, t.TempDir()), nil); !errors.Is(err, refuses) {
		t.Errorf("%v, want %v", err, refuses)
	}
	m.Program = "/bin/false"
	if err := m.Make(context.Background(), open(t, t.TempDir()), nil); !errors.Is(err, ErrTPM) {
		t.Errorf("a program that ends at once: %v, want ErrTPM", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	m.Program = program(t)
	if err := m.Make(ctx, open(t, t.TempDir()), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted before: %v, want Canceled", err)
	}
	ctx, cancel = context.WithCancel(context.Background())
	m.Certify = func(crypto.PublicKey, About) ([]byte, error) { // swtpm is in the midst of its work
		cancel()
		return make([]byte, 100), nil
	}
	if err := m.Make(ctx, open(t, t.TempDir()), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v, want Canceled", err)
	}
}

func BenchmarkMake(b *testing.B) {
	m := &Maker{Keeper: keeper, Program: program(b), Banks: []eventlog.Bank{eventlog.SHA256}}
	for b.Loop() {
		if err := m.Make(context.Background(), open(b, b.TempDir()), nil); err != nil {
			b.Fatal(err)
		}
	}
}
