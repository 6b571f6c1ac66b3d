//go:build !quick

package predict

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/internal/vectors"
)

// found is a file of those that make qemu-matrix fetches, by its SHA-256.
func found(t testing.TB, sum string) []byte {
	t.Helper()
	cache := "../../../.cache/"
	for _, pattern := range []string{
		"/usr/share/ovmf/*.fd", "/usr/share/OVMF/*.fd", cache + "root/usr/share/*/*.fd", cache + "root/boot/vmlinuz-*",
	} {
		names, _ := filepath.Glob(pattern)
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err == nil && hex.EncodeToString(eventlog.SHA256.Sum(b)) == sum {
				return b
			}
		}
	}
	t.Skipf("no file with the SHA-256 %s is here (make qemu-matrix fetches some)", sum)
	return nil
}

// TestBoots: what is predicted from the inputs is what real boots have left.
func TestBoots(t *testing.T) {
	vectors.EachPCRs(t, func(t *testing.T, v *vectors.PCRs) {
		for _, x := range v.Boots {
			if x.KernelSum == "" {
				continue
			}
			t.Run(x.Name, func(t *testing.T) {
				f, err := ReadFirmware(found(t, x.FirmwareSum))
				if err != nil {
					t.Fatal(err)
				}
				in := &Inputs{
					Firmware: f, Kernel: found(t, x.KernelSum), Cmdline: x.Cmdline, Memory: x.Memory << 20,
					Initrd: &Initrd{x.InitrdSize, map[eventlog.Bank][]byte{eventlog.SHA256: unhex(t, x.InitrdSum)}},
				}
				if _, err := fmt.Sscanf(x.QEMU, "%d.", &in.QEMU); err != nil {
					t.Fatal(err)
				}
				p, err := Predict(in)
				if err != nil {
					t.Fatal(err)
				}
				predicted := 0
				for i, r := range p.PCRs {
					if r.Certainty == Unknown {
						t.Logf("PCR %d: unknown: %s", i, r.Why)
						continue
					}
					predicted++
					if got := hex.EncodeToString(r.Values[eventlog.SHA256]); got != x.PCRs[fmt.Sprint(i)] {
						t.Errorf("PCR %d (%s): %s, want %s", i, r.Certainty, got, x.PCRs[fmt.Sprint(i)])
					}
				}
				if predicted < 12 {
					t.Errorf("only %d registers are predicted", predicted)
				}
			})
		}
	})
}
