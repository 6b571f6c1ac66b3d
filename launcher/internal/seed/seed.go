// Package seed makes what configures a guest at its first boot: a disk for cloud-init, and
// credentials for systemd.
//
// Sources: cloud-init, doc/rtd/reference/datasources/nocloud.rst; systemd.system-credentials(7);
// smbios tables of type 11 (OEM strings).
package seed

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"golang.org/x/sys/unix"
)

// label is how cloud-init finds a seed.
const label = "cidata"

// NoCloud makes a seed, a file system of ISO 9660 in memory, of files by their names. work is a
// directory that is made to put it together: it holds the files meanwhile.
func NoCloud(work string, files map[string][]byte) (*os.File, error) {
	out, err := inMemory(label)
	if err != nil {
		return nil, err
	}
	if err := write(out, work, files); err != nil {
		_ = out.Close()
		return nil, fmt.Errorf("the seed for cloud-init: %w", err)
	}
	defer out.Close()
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", out.Fd())) // for reading alone
}

func write(out *os.File, work string, files map[string][]byte) error {
	if err := os.Mkdir(work, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(work)
	const sector = 2048
	fs, err := iso9660.Create(file.New(out, false), 0, 0, sector, work)
	if err != nil {
		return err
	}
	for name, content := range files {
		f, err := fs.OpenFile("/"+name, os.O_CREATE|os.O_RDWR)
		if err != nil {
			return err
		}
		_, err = f.Write(content)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return fs.Finalize(iso9660.FinalizeOptions{RockRidge: true, VolumeIdentifier: label})
}

// Credential makes a string of SMBIOS that systemd reads as a credential, in memory.
func Credential(name string, content []byte) (*os.File, error) {
	out, err := inMemory("credential")
	if err != nil {
		return nil, err
	}
	text := base64.StdEncoding.AppendEncode([]byte("io.systemd.credential.binary:"+name+"="), content)
	defer clear(text)
	if _, err := out.Write(text); err != nil {
		_ = out.Close()
		return nil, err
	}
	return out, nil
}

func inMemory(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
