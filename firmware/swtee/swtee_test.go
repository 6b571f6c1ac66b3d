package swtee

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/session"
)

var sharedPlatform = sync.OnceValues(func() (*Platform, error) { return OpenPlatform(sharedDir) })

// sharedDir holds the keys of the platform that tests share: making them takes seconds.
var sharedDir string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "swtee-test-*")
	if err != nil {
		panic(err)
	}
	sharedDir = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func platform(t testing.TB) *Platform {
	t.Helper()
	p, err := sharedPlatform()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// newGuest is a guest that the kernel has initialised for SEV.
func newGuest(t testing.TB, p *Platform) *Guest {
	t.Helper()
	g := NewFirmware(p).NewGuest()
	if err := g.Init(CmdInit, false, 0); err != nil {
		t.Fatal(err)
	}
	return g
}

func TestPlatformChainVerifiesUpToItsOwnRootOnly(t *testing.T) {
	p := platform(t)
	if _, err := p.Chain().Verify([]sev.Root{p.Root()}); !errors.Is(err, sev.ErrUnsignedCEK) {
		t.Errorf("as exported: %v, want ErrUnsignedCEK", err)
	}
	chain, err := p.Chain().WithCEK(p.SignedCEK())
	if err != nil {
		t.Fatal(err)
	}
	if oca := chain.OCA.Bytes(); bytes.Equal(oca[signaturesAre-329:signaturesAre], make([]byte, 329)) {
		t.Error("the OCA has nothing behind its key, as real ones have")
	}
	root, err := chain.Verify([]sev.Root{p.Root()})
	if err != nil || root.Product != p.Root().Product {
		t.Fatalf("%v, %v", root.Product, err)
	}
	amd, err := sev.AMDRoots()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := chain.Verify(amd); !errors.Is(err, sev.ErrUntrusted) {
		t.Errorf("against AMD's roots: %v, want ErrUntrusted", err)
	}
	block, _ := pem.Decode(p.RootPEM())
	if block == nil || block.Type != RootPEMType {
		t.Fatal("the root prints as no PEM block")
	}
	if _, err := sev.ParseRoot("x", block.Bytes); err != nil {
		t.Error(err)
	}
}

func TestPlatformIsKeptAndPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep")
	var wg sync.WaitGroup
	got := make([]*Platform, 4)
	for i := range got {
		wg.Go(func() {
			p, err := OpenPlatform(dir)
			if err != nil {
				t.Error(err)
			}
			got[i] = p
		})
	}
	wg.Wait()
	for _, p := range got {
		if p == nil || !bytes.Equal(p.ID(), got[0].ID()) {
			t.Error("processes that start at once get different platforms")
		}
	}
	file := filepath.Join(dir, platformName)
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
	if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenPlatform(dir); err == nil {
		t.Error("a damaged platform opens")
	}
}

func status(err error) sev.Status {
	var s sev.Status
	if !errors.As(err, &s) {
		return sev.StatusOK
	}
	return s
}

func TestLaunch(t *testing.T) {
	p := platform(t)
	s, err := session.New(rand.Reader, p.Chain().PDH, 3)
	if err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, p)
	if err := g.LaunchStart(3, s.OwnerCert.Bytes(), s.Blob[:]); err != nil {
		t.Fatal(err)
	}
	firmware := bytes.Repeat([]byte{7}, 4096)
	for _, part := range [][]byte{firmware, make([]byte, 176)} {
		if err := g.LaunchUpdateData(UnknownGPA, part); err != nil {
			t.Fatal(err)
		}
	}
	m, err := g.LaunchMeasure()
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(slices.Concat(firmware, make([]byte, 176)))
	if g.LaunchDigest() != digest || !s.Keys.Verifies(m, FirmwareBuild(), 3, digest) {
		t.Error("the owner cannot verify the measurement")
	}
	packet, err := s.Keys.Seal([]byte("sixteen bytes!!!"), [16]byte{9}, m)
	if err != nil {
		t.Fatal(err)
	}
	bad := slices.Clone(packet.Data)
	bad[0] ^= 1
	if _, err := g.LaunchSecret(packet.Header[:], bad, 16); status(err) != sev.StatusBadMeasurement {
		t.Errorf("a tampered packet: %v", err)
	}
	if _, err := g.LaunchSecret(packet.Header[:51], packet.Data, 16); status(err) != sev.StatusInvalidLength {
		t.Errorf("a short header: %v", err)
	}
	plain, err := g.LaunchSecret(packet.Header[:], packet.Data, 16)
	if err != nil || string(plain) != "sixteen bytes!!!" {
		t.Errorf("%q, %v", plain, err)
	}
	report, err := g.AttestationReport([16]byte{1})
	if err != nil || len(report) != 208 || !bytes.Equal(report[16:48], digest[:]) {
		t.Errorf("report of %d bytes, %v", len(report), err)
	}
	if err := g.LaunchFinish(); err != nil {
		t.Fatal(err)
	}
	if _, err := g.LaunchSecret(packet.Header[:], packet.Data, 16); status(err) != sev.StatusInvalidGuestState {
		t.Errorf("a secret for a running guest: %v", err)
	}
}

func TestLaunchStartRefuses(t *testing.T) {
	p := platform(t)
	s, err := session.New(rand.Reader, p.Chain().PDH, 3)
	if err != nil {
		t.Fatal(err)
	}
	godh, blob := s.OwnerCert.Bytes(), s.Blob[:]
	flipped := slices.Clone(blob)
	flipped[20] ^= 1
	for name, c := range map[string]struct {
		policy      sev.Policy
		owner, blob []byte
		want        sev.Status
	}{
		"other policy":    {1, godh, blob, sev.StatusBadMeasurement},
		"flipped session": {3, godh, flipped, sev.StatusBadMeasurement},
		"newer firmware":  {3 | 9<<16, nil, nil, sev.StatusPolicyFailure},
		"reserved bits":   {3 | 0x40, nil, nil, sev.StatusInvalidParam},
		"short session":   {3, godh, blob[:100], sev.StatusInvalidLength},
		"no session":      {3, godh, nil, sev.StatusInvalidLength},
		"not a PDH":       {3, p.Chain().PEK.Bytes(), blob, sev.StatusInvalidCertificate},
		"zero cert":       {3, make([]byte, sev.CertificateSize), blob, sev.StatusInvalidCertificate},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, p)
			if err := g.LaunchStart(c.policy, c.owner, c.blob); status(err) != c.want {
				t.Errorf("%v, want %s", err, c.want.Name())
			}
			if g.State() != StateUninit {
				t.Errorf("state %v after a refusal", g.State())
			}
		})
	}
}

// TestCommandsOutOfOrder tries every command in every state.
func TestCommandsOutOfOrder(t *testing.T) {
	p := platform(t)
	steps := []func(*Guest) error{
		func(g *Guest) error { return g.LaunchStart(1, nil, nil) },
		func(g *Guest) error { _, err := g.LaunchMeasure(); return err },
		func(g *Guest) error { return g.LaunchFinish() },
	}
	commands := map[string]struct {
		run     func(*Guest) error
		allowed State
	}{
		"LaunchStart": {steps[0], StateUninit},
		"LaunchUpdateData": {
			func(g *Guest) error { return g.LaunchUpdateData(0, make([]byte, 16)) },
			StateLaunchUpdate,
		},
		"LaunchMeasure": {steps[1], StateLaunchUpdate},
		"LaunchFinish":  {steps[2], StateLaunchSecret},
		"LaunchSecret": {func(g *Guest) error {
			_, err := g.LaunchSecret(make([]byte, 52), make([]byte, 16), 16)
			if status(err) == sev.StatusBadMeasurement {
				return nil // got as far as the MAC
			}
			return err
		}, StateLaunchSecret},
	}
	for done := range len(steps) + 1 {
		for name, c := range commands {
			g := newGuest(t, p)
			for _, step := range steps[:done] {
				if err := step(g); err != nil {
					t.Fatal(err)
				}
			}
			want := sev.StatusInvalidGuestState
			if g.State() == c.allowed {
				want = sev.StatusOK
			}
			state := g.State()
			if err := c.run(g); status(err) != want {
				t.Errorf("%s in state %v: %v, want %s", name, state, err, want.Name())
			}
		}
	}
}
