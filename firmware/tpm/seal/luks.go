package seal

import (
	"encoding/json"
	"errors"

	"github.com/vmlatch/vmlatch/firmware/luks/metadata"
	"github.com/vmlatch/vmlatch/firmware/tpm"
)

// ErrNoToken means that a disk's header has nothing sealed in it.
var ErrNoToken = errors.New("the disk's header has nothing that is sealed to a TPM")

// UnsealDisk asks a TPM for what opens a disk, by the tokens in its header: those of latchkey, and
// those of systemd-cryptenroll. The first that the TPM gives counts.
func UnsealDisk(c *tpm.Conn, m *metadata.Metadata) ([]byte, error) {
	var sealed []*Sealed
	var approvals []*Approval
	var enrolled []*Enrolled
	for _, token := range m.Tokens {
		var kind struct {
			Type string `json:"type"`
		}
		if json.Unmarshal(token, &kind) != nil {
			continue // cryptsetup says more of it
		}
		var err error
		switch kind.Type {
		case TypeSealed:
			var s *Sealed
			if s, err = ParseSealed(token); err == nil {
				sealed = append(sealed, s)
			}
		case TypeApproval:
			var a *Approval
			if a, err = ParseApproval(token); err == nil {
				approvals = append(approvals, a)
			}
		case TypeEnrolled:
			var e *Enrolled
			if e, err = ParseEnrolled(token); err == nil {
				enrolled = append(enrolled, e)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	err := ErrNoToken
	for _, s := range sealed {
		var secret []byte
		if secret, err = s.Unseal(c, approvals); err == nil {
			return secret, nil
		}
	}
	for _, e := range enrolled {
		secret, e := e.Unseal(c)
		if e == nil {
			return secret, nil
		}
		if len(sealed) == 0 {
			err = e
		}
	}
	return nil, err
}
