package kds

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"testing"
)

// TestRootsArePinned: the certificates that are compiled in are the ones that AMD publishes,
// byte by byte.
func TestRootsArePinned(t *testing.T) {
	want := map[string]string{
		"ARK-Milan":      "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
		"SEV-Milan":      "67d303bd3905fd38db8b20e0793699870e7fa612eaad5dec358293fd8c0bac1b",
		"SEV-VLEK-Milan": "c5e081f59b7efab1fe2f8b505e159704e72f29cab7ef7cf628a05a42439082f5",
		"ARK-Genoa":      "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
		"SEV-Genoa":      "5464738c1546aed5f2cecf1dc98c5c960a92e8913238a61711bc90ec6e828521",
		"SEV-VLEK-Genoa": "197e610743a917d6b9bb982a5a9226ccc0a15b611be0619e626aca9151457372",
		"ARK-Turin":      "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",
		"SEV-Turin":      "5b77ef5fe7a7a004fd9032668fba9d0fda22f88c4442069a479636a6ae3b3185",
		"SEV-VLEK-Turin": "104e10a8bd060a3c20a434261a57d0588fd65a88915b4f65b08bdecaf8df1a3c",
	}
	for _, l := range Lines() {
		a := AMD().lines[l]
		if a == nil || a.ark == nil || a.ask == nil || a.asvk == nil {
			t.Fatalf("%s is not complete", l)
		}
		for _, c := range []struct {
			name string
			raw  []byte
		}{
			{a.ark.Subject.CommonName, a.ark.Raw},
			{a.ask.Subject.CommonName, a.ask.Raw},
			{a.asvk.Subject.CommonName, a.asvk.Raw},
		} {
			sum := sha256.Sum256(c.raw)
			if got := hex.EncodeToString(sum[:]); got != want[c.name] {
				t.Errorf("%s: SHA-256 %s, want %s", c.name, got, want[c.name])
			}
		}
	}
	if AMD().Emulated {
		t.Error("AMD's roots are called emulated")
	}
	if got, want := AMD().Names(), "ARK-Milan, ARK-Genoa, ARK-Turin"; got != want {
		t.Errorf("names %q, want %q", got, want)
	}
}

func TestParseRoots(t *testing.T) {
	r, err := ParseRoots(amdPEM)
	if err != nil || !r.Emulated {
		t.Errorf("%+v, %v, want roots that are called emulated: a file may hold anything", r, err)
	}
	ark := AMD().lines[Milan].ark
	block := func(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}) }
	for name, text := range map[string][]byte{
		"empty": nil, "noise": []byte("x"), "no certificate": block([]byte{1}),
		"ASK alone": block(AMD().lines[Milan].ask.Raw),
		"a key":     pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: ark.RawSubjectPublicKeyInfo}),
	} {
		if _, err := ParseRoots(text); !errors.Is(err, ErrRoots) {
			t.Errorf("%s: %v, want %v", name, err, ErrRoots)
		}
	}
}

func TestLineOf(t *testing.T) {
	for _, c := range []struct {
		family, model uint8
		want          Line
	}{
		{0x19, 0x00, Milan},
		{0x19, 0x0f, Milan},
		{0x19, 0x10, Genoa},
		{0x19, 0x1f, Genoa},
		{0x19, 0xa0, Genoa},
		{0x19, 0xaf, Genoa},
		{0x1a, 0x00, Turin},
		{0x1a, 0x11, Turin},
		{0x19, 0x20, ""},
		{0x19, 0x9f, ""},
		{0x19, 0xb0, ""},
		{0x1a, 0x50, ""},
		{0x1a, 0x90, ""},
		{0x17, 0x31, ""},
		{0, 0, ""},
	} {
		if got, ok := LineOf(c.family, c.model); got != c.want || ok != (c.want != "") {
			t.Errorf("family %#x, model %#x: %q, want %q", c.family, c.model, got, c.want)
		}
	}
}

// TestTCB: the layout depends on the line, and there and back is the same.
func TestTCB(t *testing.T) {
	const raw = 0x0807060504030201
	if got, want := ParseTCB(raw, Milan), (TCB{BootLoader: 1, TEE: 2, SNP: 7, Microcode: 8}); got != want {
		t.Errorf("Milan: %+v, want %+v", got, want)
	}
	want := TCB{FMC: 1, BootLoader: 2, TEE: 3, SNP: 4, Microcode: 8}
	if got := ParseTCB(raw, Turin); got != want {
		t.Errorf("Turin: %+v, want %+v", got, want)
	}
	for _, l := range Lines() {
		if got := ParseTCB(want.Raw(l), l); got.Text(l) != want.Text(l) {
			t.Errorf("%s: %+v, want %+v", l, got, want)
		}
	}
	// As numbers the second is larger.
	a, b := TCB{BootLoader: 5, Microcode: 1}, TCB{BootLoader: 4, Microcode: 200}
	if got := b.Below(a).Name; got != "bootloader" {
		t.Errorf("below by %q, want bootloader", got)
	}
	if got := a.Below(a).Name; got != "" {
		t.Errorf("a TCB is below itself by %q", got)
	}
}

func TestURLs(t *testing.T) {
	tcb := TCB{FMC: 1, BootLoader: 2, TEE: 3, SNP: 4, Microcode: 71}
	turin := append([]byte{1, 2, 3, 4, 5, 6, 7, 8}, make([]byte, 56)...)
	long := slices.Repeat([]byte{0xab}, 64)
	for got, want := range map[string]string{
		VCEKURL(Turin, turin, tcb): "/vcek/v1/Turin/0102030405060708" +
			"?fmcSPL=01&blSPL=02&teeSPL=03&snpSPL=04&ucodeSPL=71",
		VCEKURL(Milan, long, tcb): "/vcek/v1/Milan/" + strings.Repeat("ab", 64) +
			"?blSPL=02&teeSPL=03&snpSPL=04&ucodeSPL=71",
		CRLURL(Genoa, VLEK): "/vlek/v1/Genoa/crl",
		CRLURL(Genoa, VCEK): "/vcek/v1/Genoa/crl",
	} {
		if got != Server+want {
			t.Errorf("%s, want %s%s", got, Server, want)
		}
	}
}

func FuzzParseCertificate(f *testing.F) {
	f.Add(AMD().lines[Milan].ask.Raw)
	f.Fuzz(func(_ *testing.T, der []byte) {
		if c, err := ParseCertificate(der); err == nil {
			_ = AMD().Chain(c, c.X509.NotBefore)
		}
		_, _ = ParseCRL(der)
	})
}
