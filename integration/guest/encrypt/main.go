// Command encrypt makes an encrypted disk (LUKS2) of a plain one, by calculating what dm-crypt
// would write: a machine that builds test guests may have no device-mapper, and a guest under TCG
// takes minutes for it.
package main

import (
	"crypto/aes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/crypto/xts"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: encrypt PLAIN DISK KEY-FILE")
		os.Exit(2)
	}
	if err := encrypt(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "encrypt:", err)
		os.Exit(1)
	}
}

// sector is a volume's unit of encryption, in bytes.
const sector = 512

// offset is where the data begins, in bytes: cryptsetup's default.
const offset = 16 << 20

func encrypt(plain, disk, keyFile string) (err error) {
	in, err := os.Open(plain)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.Create(disk)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := out.Truncate(offset + info.Size()); err != nil {
		return err
	}
	key := make([]byte, 64)
	_, _ = rand.Read(key)
	if err := format(disk, keyFile, key); err != nil {
		return err
	}
	volume, err := xts.NewCipher(aes.NewCipher, key)
	if err != nil {
		return err
	}
	if _, err := out.Seek(offset, io.SeekStart); err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for at := uint64(0); ; {
		n, err := io.ReadFull(in, buf)
		n = (n + sector - 1) / sector * sector
		for i := 0; i < n; i += sector {
			volume.Encrypt(buf[i:i+sector], buf[i:i+sector], at)
			at++
		}
		if _, err := out.Write(buf[:n]); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// format writes the volume's header. The passphrase is as random as its key: iterations would add
// nothing.
func format(disk, keyFile string, key []byte) error {
	dir, err := os.MkdirTemp("", "encrypt")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	volumeKey := filepath.Join(dir, "key")
	if err := os.WriteFile(volumeKey, key, 0o600); err != nil {
		return err
	}
	args := []string{
		"luksFormat", "--batch-mode", "--type", "luks2", "--cipher", "aes-xts-plain64", "--key-size", "512",
		"--volume-key-file", volumeKey, "--sector-size", fmt.Sprint(sector), "--offset", fmt.Sprint(offset / 512),
		"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", keyFile, disk,
	}
	cmd := exec.Command("cryptsetup", args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cryptsetup: %w: %s", err, said)
	}
	return nil
}
