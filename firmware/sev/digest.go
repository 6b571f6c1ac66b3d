package sev

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/vmlatch/vmlatch/firmware/guid"
	"github.com/vmlatch/vmlatch/firmware/internal/mapfile"
)

// GUID is a GUID as it lies in memory: the first three fields little-endian.
type GUID = guid.GUID

// ParseGUID reads the usual text form, 8-4-4-4-12 hex digits.
func ParseGUID(s string) (GUID, error) { return guid.Parse(s) }

// MustGUID is ParseGUID for constants.
func MustGUID(s string) GUID { return guid.MustParse(s) }

// GUIDs of the kernel hash table (QEMU, target/i386/sev.c; OVMF, AmdSev/BlobVerifierLibSevHashes).
var (
	guidHashTable = MustGUID("9438d606-4f22-4cc9-b479-a793d411fd21")
	guidCmdline   = MustGUID("97d02dd8-bd20-4c94-aa78-e7714d36ab2a")
	guidInitrd    = MustGUID("44baf731-3a2f-4bd7-9af1-41e29169781d")
	guidKernel    = MustGUID("4de79437-abd2-427f-b835-d5b172d2045b")
)

// HashTableSize is the length in bytes of the kernel hash table, padded to 16.
const HashTableSize = 176

// KernelHashes are the SHA-256 hashes by which the firmware recognises what it boots.
type KernelHashes struct {
	Kernel  [32]byte // of the file as given
	Initrd  [32]byte // of the file; of nothing when there is none
	Cmdline [32]byte // of the string and one NUL
}

// HashKernel reads kernel and initrd to their ends. A nil initrd means none.
func HashKernel(kernel, initrd io.Reader, cmdline string) (KernelHashes, error) {
	h := KernelHashes{Cmdline: hashCmdline(cmdline)}
	for _, part := range []struct {
		name string
		r    io.Reader
		sum  *[32]byte
	}{{"kernel", kernel, &h.Kernel}, {"initrd", initrd, &h.Initrd}} {
		d := sha256.New()
		if part.r != nil {
			if _, err := io.Copy(d, part.r); err != nil {
				return h, fmt.Errorf("hash %s: %w", part.name, err)
			}
		}
		d.Sum(part.sum[:0])
	}
	return h, nil
}

func hashCmdline(s string) [32]byte { return sha256.Sum256(append([]byte(s), 0)) }

// HashKernelFiles hashes a kernel and an initrd side by side. A nil initrd means none.
func HashKernelFiles(kernel string, initrd io.WriterTo, cmdline string) (KernelHashes, error) {
	h := KernelHashes{Cmdline: hashCmdline(cmdline), Initrd: sha256.Sum256(nil)}
	initrdErr := make(chan error, 1)
	go func() {
		var err error
		if initrd != nil {
			h.Initrd, err = HashInitrd(initrd)
		}
		initrdErr <- err
	}()
	var err error
	h.Kernel, err = HashFile(kernel)
	err = errors.Join(err, <-initrdErr) // before h is read
	return h, err
}

// HashInitrd returns the SHA-256 of an initrd.
func HashInitrd(initrd io.WriterTo) (sum [32]byte, err error) {
	h := sha256.New()
	_, err = initrd.WriteTo(h)
	return [32]byte(h.Sum(nil)), err
}

// HashFile returns the SHA-256 of a file as it is.
func HashFile(file string) (sum [32]byte, err error) {
	err = mapfile.With(file, func(b []byte) error { sum = sha256.Sum256(b); return nil })
	return sum, err
}

// Table is the hash table as it is loaded and measured (QEMU,
// sev_add_kernel_loader_hashes): cmdline, initrd, kernel, then zeros.
func (h KernelHashes) Table() [HashTableSize]byte {
	const entrySize = 16 + 2 + sha256.Size
	var t [HashTableSize]byte
	b := append(t[:0], guidHashTable[:]...)
	b = binary.LittleEndian.AppendUint16(b, 16+2+3*entrySize)
	for _, e := range []struct {
		guid GUID
		sum  [32]byte
	}{{guidCmdline, h.Cmdline}, {guidInitrd, h.Initrd}, {guidKernel, h.Kernel}} {
		b = append(b, e.guid[:]...)
		b = binary.LittleEndian.AppendUint16(b, entrySize)
		b = append(b, e.sum[:]...)
	}
	return t
}

// Errors about inputs for which no platform gives a digest.
var (
	ErrNoFirmware  = errors.New("launch digest: the firmware image is empty")
	ErrNoHashTable = errors.New("launch digest: the firmware has no area for kernel hashes")
)

// HashArea is the guest-physical area that a firmware reserves for the hash table.
type HashArea struct{ Base, Size uint32 }

// Holds reports whether the table fits; areas of size 0 mean "not supported".
func (a HashArea) Holds() bool { return a.Base != 0 && a.Size >= HashTableSize }

// MeasurementSize is the length of a launch measurement: the MAC, then the nonce.
const MeasurementSize = 48

// Measurement is a platform's answer to LAUNCH_MEASURE (SEV API, chapter 6.5).
type Measurement struct {
	MAC   [32]byte
	Nonce [16]byte // MNONCE, chosen by the platform
}

// ParseMeasurement reads the 48 bytes of query-sev-launch-measure.
func ParseMeasurement(b []byte) (Measurement, error) {
	var m Measurement
	if len(b) != MeasurementSize {
		return m, fmt.Errorf("launch measurement: %d bytes, must be %d", len(b), MeasurementSize)
	}
	copy(m.MAC[:], b)
	copy(m.Nonce[:], b[32:])
	return m, nil
}

// Bytes returns the 48 bytes that ParseMeasurement takes.
func (m Measurement) Bytes() []byte { return slices.Concat(m.MAC[:], m.Nonce[:]) }
