package metadata

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const good = `{"keyslots":{"0":{"type":"luks2","key_size":64,"af":{"type":"luks1"},"area":{"type":"raw",` +
	`"offset":"32768","encryption":"aes-xts-plain64","key_size":64},"kdf":{"type":"argon2id"}}},` +
	`"tokens":{"0":{"type":"latchkey-tpm","keyslots":[]},"1":{"type":"other","keyslots":[]}},` +
	`"segments":{"0":{"type":"crypt","offset":"16777216","encryption":"aes-xts-plain64","size":"dynamic",` +
	`"iv_tweak":"0","sector_size":4096}},"digests":{},"config":{}}`

// header is one with a right checksum.
func header(text string) []byte {
	b := make([]byte, 0x4000)
	copy(b, magic)
	binary.BigEndian.PutUint64(b[8:], uint64(len(b)))
	copy(b[algAt:], "sha256")
	copy(b[binarySize:], text)
	sum := sha256.Sum256(b)
	copy(b[csumAt:], sum[:])
	return b
}

func TestRead(t *testing.T) {
	m, err := Read(bytes.NewReader(header(good)))
	if err != nil || len(m.Tokens) != 2 || !strings.Contains(string(m.Tokens[0]), "latchkey-tpm") {
		t.Fatalf("%+v, %v", m, err)
	}
	// Each of these opens with any passphrase, or shows other data, in one reading of it.
	data, slot := `"16777216","encryption":"aes-xts-plain64"`, `"32768","encryption":"aes-xts-plain64"`
	rest := `,"size":"dynamic","iv_tweak":"0","sector_size":4096`
	null := `"16777216","encryption":"cipher_null-ecb`
	for what, change := range map[string][2]string{
		"a null cipher of the data":     {data, null + `"`},
		"a null cipher of the key slot": {slot, `"32768","encryption":"cipher_null-ecb"`},
		"another case of letters": {
			data, null + `","Encryption":"aes-xts-plain64"`,
		},
		"a name with a NUL":             {data, data + `,"encryption\u0000x":"cipher_null-ecb"`},
		"a NUL in a key slot":           {slot, slot + `,"encryption\u0000":"cipher_null-ecb"`},
		"a NUL at the top":              {`"config":{}`, `"segments\u0000":{"0":{"type":"linear"}},"config":{}`},
		"a name in other letters":       {data, data + `,"encrypt\u00efon":"cipher_null-ecb"`},
		"data from elsewhere":           {`"iv_tweak":"0"`, `"iv_tweak":"4096"`},
		"a part of the data":            {`"size":"dynamic"`, `"size":"1048576"`},
		"flags":                         {`"size":"dynamic"`, `"size":"dynamic","flags":["backup"]`},
		"a second, encrypted segment":   {`"segments":{`, `"segments":{"1":{"type":"crypt"},`},
		"a cipher with a NUL":           {data, null + `\u0000aes-xts-plain64"`},
		"the last of two":               {data, data + `,"encryption":"cipher_null-ecb"`},
		"data that are not encrypted":   {`"type":"crypt"`, `"type":"linear"`},
		"a further segment":             {`"segments":{`, `"segments":{"1":{"type":"linear","offset":"1"},`},
		"no segment":                    {`{"0":{"type":"crypt","offset":` + data + rest + `}}`, `{}`},
		"a kind of key slot":            {`"type":"luks2"`, `"type":"reencrypt"`},
		"something behind the end":      {`"config":{}}`, `"config":{}} {"segments":{}}`},
		"something behind the metadata": {`"config":{}}`, "\"config\":{}}\x00{}"},
		"a comment":                     {`{"keyslots"`, `/* */{"keyslots"`},
		"integrity":                     {`"type":"crypt"`, `"type":"crypt","integrity":{"type":"none"}`},
	} {
		text := strings.Replace(good, change[0], change[1], 1)
		if text == good {
			t.Fatalf("%s: nothing is changed", what)
		}
		if _, err := Read(bytes.NewReader(header(text))); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	for at := range 0x4000 / 16 {
		b := header(good)
		b[at*16] ^= 1
		if _, err := Read(bytes.NewReader(b)); err == nil {
			t.Errorf("bit at byte %d: accepted", at*16)
		}
	}
}

// TestUse: the second metadata, which cryptsetup may prefer, are gone.
func TestUse(t *testing.T) {
	b := append(header(good), header(strings.ReplaceAll(good, "aes-xts-plain64", "cipher_null-ecb"))...)
	copy(b[0x4000:], second)
	name := filepath.Join(t.TempDir(), "header")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := Use(f); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(after, second) || bytes.Contains(after[:0x4000], []byte("latchkey-tpm")) {
		t.Error("the second metadata, or the tokens, are still there")
	}
	again, err := Read(bytes.NewReader(after))
	if err != nil || len(again.Tokens) != 0 ||
		!strings.Contains(string(again.text), `"encryption":"aes-xts-plain64"`) {
		t.Errorf("what was written: %+v, %v", again, err)
	}
	b = header(strings.Replace(good, `"crypt"`, `"linear"`, 1))
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Use(f); !errors.Is(err, ErrUnsafe) {
		t.Errorf("not encrypted: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(good))
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) < 0x3000 {
			m, err := Read(bytes.NewReader(header(string(text))))
			if err == nil && bytes.Contains(m.text, []byte(`\u0000`)) {
				t.Errorf("a NUL is kept: %s", m.text)
			}
		}
	})
}
