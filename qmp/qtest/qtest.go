// Package qtest drives QEMU's memory, ports and firmware configuration device from outside, as
// QEMU's own tests do, before a guest runs.
//
// Sources: QEMU, docs/devel/testing/qtest.rst, docs/specs/fw_cfg.rst.
package qtest

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net"
	"slices"
	"strings"
	"sync"
)

// Conn is a connection to a QEMU that was started with -qtest.
type Conn struct {
	mu   sync.Mutex
	conn net.Conn
	in   *bufio.Reader
}

// New talks to a QEMU over a connection.
func New(conn net.Conn) *Conn {
	return &Conn{conn: conn, in: bufio.NewReaderSize(conn, 64<<10)}
}

// Close closes the connection.
func (q *Conn) Close() error { return q.conn.Close() }

func (q *Conn) command(format string, args ...any) (string, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, err := fmt.Fprintf(q.conn, format+"\n", args...); err != nil {
		return "", fmt.Errorf("qtest: %w", err)
	}
	line, err := q.in.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("qtest: %w", err)
	}
	result, ok := strings.CutPrefix(strings.TrimSpace(line), "OK")
	if !ok {
		return "", fmt.Errorf("qtest: %s", strings.TrimSpace(line))
	}
	return strings.TrimSpace(result), nil
}

// Read reads guest memory, ROM too.
func (q *Conn) Read(gpa uint64, n int) ([]byte, error) {
	text, err := q.command("b64read %#x %#x", gpa, n)
	if err != nil {
		return nil, err
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err == nil && len(b) != n {
		err = fmt.Errorf("qtest: %d bytes where %d were asked for", len(b), n)
	}
	return b, err
}

// Write writes guest memory and reads it back: a write to an address that has no memory
// is silently ignored.
func (q *Conn) Write(gpa uint64, b []byte) error {
	if _, err := q.command("b64write %#x %#x %s", gpa, len(b), base64.StdEncoding.EncodeToString(b)); err != nil {
		return err
	}
	back, err := q.Read(gpa, len(b))
	if err != nil {
		return err
	}
	defer clear(back)
	if string(back) != string(b) {
		return fmt.Errorf("qtest: no memory at %#x", gpa)
	}
	return nil
}

// Items and registers of QEMU's firmware configuration device
// (QEMU, include/standard-headers/linux/qemu_fw_cfg.h; docs/specs/fw_cfg.rst).
const (
	fwSetupSize = 0x17
	fwSetupData = 0x18
	fwFileDir   = 0x19

	fwSelectPort = 0x510
	fwDataPort   = 0x511
	fwDMAPort    = 0x514
	fwDMARead    = 2
	fwDMASelect  = 8

	// Guest memory used for transfers before the guest runs, and restored after.
	scratchControl = 0x1000
	scratchData    = 0x100000
	maxItem        = 4 << 20
)

func (q *Conn) fwSize(item int) (int, error) {
	if _, err := q.command("outw %#x %#x", fwSelectPort, item); err != nil {
		return 0, err
	}
	var b [4]byte
	for i := range b {
		text, err := q.command("inb %#x", fwDataPort)
		if err != nil {
			return 0, err
		}
		if _, err := fmt.Sscanf(text, "0x%x", &b[i]); err != nil {
			return 0, fmt.Errorf("qtest: inb: %q", text)
		}
	}
	return int(binary.LittleEndian.Uint32(b[:])), nil
}

// File is an item of the firmware configuration device that has a name.
type File struct {
	Name string
	Size int
	key  int
}

// Files lists the items that have a name (docs/specs/fw_cfg.rst, the directory: a count, then size,
// key and name of each, big-endian).
func (q *Conn) Files() (list []File, err error) {
	const entry, keyAt, nameAt = 64, 4, 8
	count, err := q.fwSize(fwFileDir)
	if err != nil {
		return nil, err
	}
	n := int(bits.ReverseBytes32(uint32(count)))
	dir, err := q.fwRead(fwFileDir, 4+n*entry)
	if err != nil {
		return nil, err
	}
	be := binary.BigEndian
	for b := dir[4:]; len(b) >= entry; b = b[entry:] {
		text, _, _ := bytes.Cut(b[nameAt:entry], []byte{0})
		list = append(list, File{string(text), int(be.Uint32(b)), int(be.Uint16(b[keyAt:]))})
	}
	return list, nil
}

// HasFile reports whether an item with a name exists.
func (q *Conn) HasFile(name string) (bool, error) {
	list, err := q.Files()
	return slices.ContainsFunc(list, func(f File) bool { return f.Name == name }), err
}

// ReadFile reads an item of [Conn.Files]. QEMU makes some, as ACPI tables, when they are first
// read.
func (q *Conn) ReadFile(f File) ([]byte, error) { return q.fwRead(f.key, f.Size) }

// Out writes 32 bits to a port.
func (q *Conn) Out(port uint16, value uint32) error {
	_, err := q.command("outl %#x %#x", port, value)
	return err
}

// In reads 32 bits from a port.
func (q *Conn) In(port uint16) (value uint32, err error) {
	text, err := q.command("inl %#x", port)
	if err != nil {
		return 0, err
	}
	if _, err := fmt.Sscanf(text, "0x%x", &value); err != nil {
		return 0, fmt.Errorf("qtest: inl: %q", text)
	}
	return value, nil
}

// KernelSetup reads the beginning of the kernel as QEMU serves it, its setup header filled in;
// nil without a kernel.
func (q *Conn) KernelSetup() ([]byte, error) {
	n, err := q.fwSize(fwSetupSize)
	if err != nil || n == 0 {
		return nil, err
	}
	return q.fwRead(fwSetupData, n)
}

// fwRead reads an item by DMA; byte by byte, a kernel's setup would take half a
// second.
func (q *Conn) fwRead(item, n int) (_ []byte, err error) {
	if n > maxItem {
		return nil, fmt.Errorf("fw_cfg item %#x has %d bytes, at most %d are expected", item, n, maxItem)
	}
	control, err1 := q.Read(scratchControl, 16)
	data, err2 := q.Read(scratchData, n)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	defer func() { // a secret may have been put there
		err = errors.Join(err, q.Write(scratchData, data), q.Write(scratchControl, control))
		clear(data)
	}()
	be := binary.BigEndian
	access := be.AppendUint32(nil, uint32(item)<<16|fwDMASelect|fwDMARead)
	access = be.AppendUint32(access, uint32(n))
	access = be.AppendUint64(access, scratchData)
	if err := q.Write(scratchControl, access); err != nil {
		return nil, err
	}
	for i, half := range []uint32{0, scratchControl} { // the address, high half first, big-endian
		swapped := binary.LittleEndian.Uint32(be.AppendUint32(nil, half))
		if _, err := q.command("outl %#x %#x", fwDMAPort+4*i, swapped); err != nil {
			return nil, err
		}
	}
	status, err := q.Read(scratchControl, 4)
	if err != nil {
		return nil, err
	}
	if s := be.Uint32(status); s != 0 {
		return nil, fmt.Errorf("fw_cfg: reading item %#x failed (%#x)", item, s)
	}
	return q.Read(scratchData, n)
}
