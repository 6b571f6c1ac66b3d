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
// those of systemd-cryptenroll. The first counts that the TPM gives, and that has a pin; "" takes
// any.
func UnsealDisk(c *tpm.Conn, m *metadata.Metadata, pin string) ([]byte, error) {
	var sealed []*Sealed
	var approvals []*Approval
	var enrolled []*Enrolled
	err := ErrNoToken
	for _, token := range m.Tokens {
		var kind struct {
			Type string `json:"type"`
		}
		if json.Unmarshal(token, &kind) != nil {
			continue // cryptsetup says more of it
		}
		var damaged error // another token may do
		switch kind.Type {
		case TypeSealed:
			sealed, damaged = collect(sealed, token, ParseSealed)
		case TypeApproval:
			approvals, damaged = collect(approvals, token, ParseApproval)
		case TypeEnrolled:
			enrolled, damaged = collect(enrolled, token, ParseEnrolled)
		}
		if damaged != nil {
			err = damaged
		}
	}
	var asks []func() ([]byte, error)
	for _, e := range enrolled {
		asks = append(asks, func() ([]byte, error) { return e.Unseal(c) })
	}
	for _, s := range sealed { // last, so that the error is theirs
		asks = append(asks, func() ([]byte, error) { return s.Unseal(c, approvals) })
	}
	for _, ask := range asks {
		secret, e := ask()
		if e == nil && pin != "" {
			e = CheckPin(secret, pin)
		}
		if e == nil {
			return secret, nil
		}
		clear(secret)
		err = e
	}
	return nil, err
}

func collect[T any](list []*T, token []byte, parse func([]byte) (*T, error)) ([]*T, error) {
	x, err := parse(token)
	if err != nil {
		return list, err
	}
	return append(list, x), nil
}
