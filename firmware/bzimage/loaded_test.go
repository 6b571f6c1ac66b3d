package bzimage

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/authenticode"
	"github.com/vmlatch/vmlatch/firmware/internal/vectors"
)

// TestLoadOptions: what a kernel is started with is what real firmware has logged.
func TestLoadOptions(t *testing.T) {
	vectors.EachPCRs(t, func(t *testing.T, v *vectors.PCRs) {
		for _, x := range v.Small.LoadOptions {
			got := LoadOptions(x.Cmdline, x.Initrd, x.Style == "suffix")
			want := LoadOptions(x.Options, false, false)
			if sum := sha256.Sum256(got); !bytes.Equal(got, want) || hex.EncodeToString(sum[:]) != x.SHA256 {
				t.Errorf(
					"%q, %s, initrd %t: %q, %x, want %q, %s",
					x.Cmdline,
					x.Style,
					x.Initrd,
					got,
					sum,
					want,
					x.SHA256,
				)
			}
		}
	})
}

// TestPatched: the header is filled in as QEMU does.
func TestPatched(t *testing.T) {
	vectors.EachPCRs(t, func(t *testing.T, v *vectors.PCRs) {
		kernel := v.Small.Authenticode[2].Image
		before := bytes.Clone(kernel)
		for _, x := range v.Small.Patched.Cases {
			got, err := Patched(kernel, x.Memory<<20, x.InitrdSize, "quiet")
			if err != nil {
				t.Fatal(err)
			}
			sum, err := authenticode.Sum(got, sha256.New())
			if header := hex.EncodeToString(got[0x210:0x22c]); header != x.Bytes {
				t.Errorf("%d MiB, initrd of %d: %s, want %s", x.Memory, x.InitrdSize, header, x.Bytes)
			}
			if err != nil || hex.EncodeToString(sum) != x.Authenticode {
				t.Errorf("%d MiB, initrd of %d: %x, %v, want %s", x.Memory, x.InitrdSize, sum, err, x.Authenticode)
			}
		}
		if !bytes.Equal(kernel, before) || !HasHeader(kernel) || HasHeader(kernel[:0x200]) {
			t.Error("the kernel was changed, or its header is not seen")
		}
		for _, cmdline := range []string{"quiet vga=791", "splash,vga=791"} {
			if _, err := Patched(kernel, 512<<20, 0, cmdline); !errors.Is(err, ErrVGA) {
				t.Errorf("%s: %v, want ErrVGA", cmdline, err)
			}
		}
		for _, memory := range []uint64{0, 1 << 17, 4 << 20} {
			if _, err := Patched(kernel, memory, 8<<20, ""); err == nil {
				t.Errorf("an initrd of 8 MiB fits a guest of %d bytes", memory)
			}
		}
	})
}
