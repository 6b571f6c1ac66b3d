package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/smallfmt"
)

// evidence is what the platform vouches for.
type evidence struct{ evidence, table, log []byte }

// reporter asks the platform for evidence over 64 bytes.
type reporter interface {
	technology() string
	report(data [64]byte) (*evidence, error)
}

// driverTime is how long the kernel's drivers may take to be there.
const driverTime = 15 * time.Second

// reporter finds the interface that this kernel has. The host's word is taken only for a guest that
// trusts it.
func (g *guest) reporter(host bool, end time.Time) (reporter, error) {
	if g.tsm != nil {
		return g.tsm, nil
	}
	if host {
		// A host cannot talk a confidential guest into its word: such a guest is asked for
		// evidence.
		if _, err := g.find(); err == nil {
			return nil, errors.New(
				"latch.trust=host, and this guest is confidential: it does not take its host's word",
			)
		}
		err := g.retry(driverTime, end, func() error { return unix.Access(g.tpm, unix.F_OK) })
		return &vtpm{g.ask}, named(g.tpm, err)
	}
	var r reporter
	err := g.retry(driverTime, end, func() (err error) {
		r, err = g.find()
		return err
	})
	return r, err
}

func (g *guest) find() (reporter, error) {
	mountConfigfs(g.reports)
	t := &tsm{dir: g.reports, ccel: g.ccel}
	err := t.probe()
	if err == nil {
		return t, nil
	}
	if exists(g.sev) {
		return &sevGuest{g.sev}, nil
	}
	return nil, hint(
		smallfmt.Errorf("this kernel gives no evidence: %w", err),
		"the guest must run under SEV-SNP or TDX, with the kernel's drivers (SEV_GUEST, TDX_GUEST_DRIVER, TSM_REPORTS)",
	)
}

// mountConfigfs mounts configfs where its mount point is empty yet, as in an initrd.
func mountConfigfs(reports string) {
	const root = "/sys/kernel/config"
	if !strings.HasPrefix(reports, root) {
		return
	}
	var st unix.Statfs_t
	if unix.Statfs(root, &st) == nil && st.Type == unix.SYSFS_MAGIC {
		_ = unix.Mount("configfs", root, "configfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	}
}

// tsm is configfs-tsm (Linux, Documentation/ABI/testing/configfs-tsm-report).
type tsm struct {
	dir, ccel string
	kind      string
}

func (t *tsm) technology() string { return t.kind }

// instance makes a directory of its own for one request: two requests would disturb each other.
func (t *tsm) instance() (dir string, remove func(), err error) {
	var name [8]byte
	_, _ = rand.Read(name[:]) // never fails (crypto/rand)
	dir = t.dir + "/latch-" + smallfmt.Hex(name[:])
	if err := unix.Mkdir(dir, 0o700); err != nil {
		return "", nil, named(t.dir, err)
	}
	return dir, func() { _ = unix.Rmdir(dir) }, nil
}

func (t *tsm) probe() error {
	dir, remove, err := t.instance()
	if err != nil {
		return err
	}
	defer remove()
	b, err := readFile(dir + "/provider")
	if err != nil {
		return err
	}
	switch name := strings.TrimSpace(string(b)); name {
	case "sev_guest":
		t.kind = exchange.SNP
	case "tdx_guest":
		t.kind = exchange.TDX
	default:
		return smallfmt.Errorf("unknown provider %q of evidence", name)
	}
	return nil
}

// attempts is how often a request is repeated that something disturbed.
const attempts = 3

func (t *tsm) report(data [64]byte) (e *evidence, err error) {
	for range attempts {
		if e, err = t.once(data); err == nil || !errors.Is(err, errDisturbed) && !errors.Is(err, unix.EBUSY) &&
			!errors.Is(err, unix.EAGAIN) {
			break
		}
	}
	if errors.Is(err, unix.ENOTTY) {
		return nil, &finalError{hint(errors.New("the platform's channel to this guest is broken (ENOTTY)"),
			"start the guest again: no further request can succeed")}
	}
	return e, err
}

var errDisturbed = errors.New("another request disturbed this one")

func (t *tsm) once(data [64]byte) (*evidence, error) {
	dir, remove, err := t.instance()
	if err != nil {
		return nil, err
	}
	defer remove()
	path := func(name string) string { return dir + "/" + name }
	if err := writeFile(path("inblob"), data[:]); err != nil {
		return nil, err
	}
	before, err := generation(path("generation"))
	if err != nil {
		return nil, err
	}
	e := &evidence{}
	if e.evidence, err = readFile(path("outblob")); err != nil {
		return nil, err
	}
	if len(e.evidence) == 0 {
		return nil, hint(errors.New("the platform gives empty evidence"),
			"TDX: the host's quoting service does not answer (QEMU's quote-generation-socket)")
	}
	if t.kind == exchange.SNP {
		e.table, _ = readFile(path("auxblob")) // of certificates; most hosts give none
		e.table = noPadding(e.table)
	}
	after, err := generation(path("generation"))
	if err != nil {
		return nil, err
	}
	if before != 1 || after != before {
		return nil, errDisturbed
	}
	if t.kind == exchange.TDX {
		e.log = eventLog(t.ccel)
	}
	return e, nil
}

// noPadding is a table of certificates, or nil for an empty one.
func noPadding(table []byte) []byte {
	if len(bytes.Trim(table, "\x00")) == 0 {
		return nil
	}
	return table
}

func generation(name string) (int, error) {
	b, err := readFile(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// eventLog is the log without the padding behind it; nil if there is none that can be sent.
func eventLog(name string) []byte {
	b, err := readFile(name)
	if err != nil {
		return nil
	}
	if b = bytes.TrimRight(b, "\xff"); len(b) > exchange.MaxLog {
		return nil
	}
	return b
}

// sevGuest is /dev/sev-guest (Linux, include/uapi/linux/sev-guest.h), for kernels before 6.7.
type sevGuest struct{ device string }

func (s *sevGuest) technology() string { return exchange.SNP }

// Requests, and their sizes in bytes.
const (
	getReport    = 0xc0205300
	getExtReport = 0xc0205302
	reportSize   = 0x4a0
	reportAt     = 0x20
	tableSize    = 16 << 10
)

// sevRequest is struct snp_guest_request_ioctl.
type sevRequest struct {
	version   uint8
	_         [7]byte
	req, resp uint64
	exitinfo  uint64
}

func (s *sevGuest) report(data [64]byte) (*evidence, error) {
	f, err := open(s.device, unix.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fd := int(f)
	table, err := unix.Mmap(-1, 0, tableSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, err
	}
	defer unix.Munmap(table)
	var pin runtime.Pinner // the kernel is given their addresses as numbers
	defer pin.Unpin()
	ext := new(struct {
		data      [64]byte
		vmpl      uint32
		_         [28]byte
		certs     uint64
		certsSize uint32
		_         uint32
	})
	pin.Pin(ext)
	ext.data, ext.certs, ext.certsSize = data, uint64(uintptr(unsafe.Pointer(&table[0]))), tableSize
	resp := make([]byte, 4000)
	pin.Pin(&resp[0])
	e, errno := s.ioctl(fd, getExtReport, unsafe.Pointer(ext), resp)
	if errno == 0 {
		e.table = noPadding(bytes.Clone(table))
		return e, nil
	}
	e, errno = s.ioctl(fd, getReport, unsafe.Pointer(ext), resp)
	switch {
	case errno == unix.ENOTTY:
		return nil, &finalError{hint(errors.New("the platform's channel to this guest is broken (ENOTTY)"),
			"start the guest again: no further request can succeed")}
	case errno != 0:
		return nil, smallfmt.Errorf("SNP_GET_REPORT: %w", errno)
	}
	return e, nil
}

func (s *sevGuest) ioctl(fd int, request uintptr, ask unsafe.Pointer, resp []byte) (*evidence, unix.Errno) {
	r := &sevRequest{version: 1, req: uint64(uintptr(ask)), resp: uint64(uintptr(unsafe.Pointer(&resp[0])))}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(r))); errno != 0 {
		return nil, errno
	}
	return &evidence{evidence: bytes.Clone(resp[reportAt : reportAt+reportSize])}, 0
}
