package predict

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/guid"
	"github.com/vmlatch/vmlatch/firmware/internal/vectors"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSMBIOS: the tables are filtered as firmware does.
func TestSMBIOS(t *testing.T) {
	vectors.EachPCRs(t, func(t *testing.T, v *vectors.PCRs) {
		x := v.Small.SMBIOS
		tables := Tables{fileSMBIOS: unhex(t, x.Tables)}
		got, err := tables.smbios(x.Vendor, x.Version, x.Date)
		if sum := sha256.Sum256(got); err != nil || hex.EncodeToString(sum[:]) != x.SHA256 {
			t.Errorf("%x, %v, want %s: %q", sum, err, x.SHA256, got)
		}
		for n := range len(tables[fileSMBIOS]) {
			_, _ = Tables{fileSMBIOS: tables[fileSMBIOS][:n]}.smbios("", "", "")
		}
	})
}

func TestBootOptions(t *testing.T) {
	vectors.EachPCRs(t, func(t *testing.T, v *vectors.PCRs) {
		f := &Firmware{setup: true, dxe: guid.MustParse("7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1")}
		for i, b := range f.bootOptions()[1:] {
			if want := unhex(t, v.Small.BootOptions[i].Data); !bytes.Equal(b, want) {
				t.Errorf("%x, want %x", b, want)
			}
		}
	})
}
