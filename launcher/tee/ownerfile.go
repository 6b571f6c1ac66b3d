package tee

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/qmp"
)

// hexBytes reads n bytes of hex; nil for "".
func hexBytes(s string, n int) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != n {
		return nil, fmt.Errorf("must be %d bytes in hex", n)
	}
	return b, nil
}

// readBase64 reads a file of base64, of at most limit bytes.
func readBase64(file string, limit int64) ([]byte, error) {
	text, err := regular.Read(file, limit)
	if err != nil {
		return nil, err
	}
	b, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return b, nil
}

// ReadOwnerFiles reads the small files of the guest's owner that a plan depends on.
func (s *Spec) ReadOwnerFiles() (map[string][]byte, error) {
	content := map[string][]byte{}
	for _, f := range s.confidential.ownerFiles() {
		b, err := readBase64(f.path, f.limit)
		if err != nil {
			return nil, s.guest.File.Unusable(f.key, err)
		}
		content[f.key] = b
	}
	return content, nil
}

// paused is an error unless QEMU holds its guest.
func paused(ctx context.Context, q qmp.Executor) error {
	status, err := qmp.QueryStatus{}.Execute(ctx, q)
	if err == nil && status.Running {
		err = errors.New("QEMU runs the guest although it was told to wait")
	}
	return err
}
