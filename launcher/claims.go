package launcher

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// Claims are hashes of what the host says it loaded. They prove nothing; they
// help an owner to find out why a measurement is another one.
type Claims struct {
	Firmware [32]byte
	Kernel   *sev.KernelHashes
}

type claimsJSON struct {
	Firmware string `json:"firmware-sha256"`
	Kernel   string `json:"kernel-sha256,omitempty"`
	Initrd   string `json:"initrd-sha256,omitempty"`
	Cmdline  string `json:"cmdline-sha256,omitempty"`
}

// MarshalJSON writes the hashes in hex.
func (c Claims) MarshalJSON() ([]byte, error) {
	j := claimsJSON{Firmware: hex.EncodeToString(c.Firmware[:])}
	if k := c.Kernel; k != nil {
		j.Kernel, j.Initrd, j.Cmdline = hex.EncodeToString(k.Kernel[:]), hex.EncodeToString(k.Initrd[:]), hex.EncodeToString(k.Cmdline[:])
	}
	return json.Marshal(j)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (c *Claims) UnmarshalJSON(b []byte) error {
	var j claimsJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	fields := []struct {
		text string
		to   []byte
	}{{j.Firmware, c.Firmware[:]}}
	if j.Kernel != "" {
		c.Kernel = &sev.KernelHashes{}
		fields = append(fields, []struct {
			text string
			to   []byte
		}{{j.Kernel, c.Kernel.Kernel[:]}, {j.Initrd, c.Kernel.Initrd[:]}, {j.Cmdline, c.Kernel.Cmdline[:]}}...)
	}
	for _, f := range fields {
		raw, err := hex.DecodeString(f.text)
		if err != nil || len(raw) != len(f.to) {
			return fmt.Errorf("claims: %q is no SHA-256 in hex", f.text)
		}
		copy(f.to, raw)
	}
	return nil
}

// claims hashes what the launch loaded, as the files are now; nil if they
// cannot be read any more.
func claims(in rundir.Inputs) *Claims {
	c := &Claims{}
	firmware, err := os.ReadFile(in.Firmware)
	if err != nil {
		return nil
	}
	c.Firmware = sha256.Sum256(firmware)
	if !in.KernelHashes {
		return c
	}
	h, err := sev.HashKernelFiles(in.Kernel, in.Initrd, in.Cmdline)
	if err != nil {
		return nil
	}
	c.Kernel = &h
	return c
}
