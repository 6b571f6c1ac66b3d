package guestdev

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

var le = binary.LittleEndian

// Requests (enum fuse_opcode).
const (
	opLookup      = 1
	opForget      = 2
	opGetattr     = 3
	opSetattr     = 4
	opMknod       = 8
	opMkdir       = 9
	opUnlink      = 10
	opRmdir       = 11
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opStatfs      = 17
	opRelease     = 18
	opFlush       = 25
	opInit        = 26
	opOpendir     = 27
	opReaddir     = 28
	opReleasedir  = 29
	opCreate      = 35
	opInterrupt   = 36
	opDestroy     = 38
	opIoctl       = 39
	opBatchForget = 42
	opCuseInit    = 4096
)

// Sizes of headers and fixed parts, in bytes.
const (
	sizeInHeader  = 40
	sizeOutHeader = 16
	sizeAttr      = 88
	maxWrite      = 128 << 10
	protocolMajor = 7
	protocolMinor = 31
)

// message is a request of the kernel's.
type message struct {
	op     uint32
	unique uint64
	node   uint64
	body   []byte
}

// channel is an open /dev/fuse or /dev/cuse.
type channel struct {
	fd   int
	name string
	// dev is the descriptor once it is connected, which a mount does: before that it cannot be
	// polled. Its Close ends serve.
	dev *os.File
	mu  sync.Mutex
	// What is being answered, so that it can be interrupted.
	running map[uint64]context.CancelFunc
}

func openChannel(name string) (*channel, error) {
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &channel{fd: fd, name: name, running: map[uint64]context.CancelFunc{}}, nil
}

func (c *channel) connected() { c.dev = os.NewFile(uintptr(c.fd), c.name) }

// serve answers requests until the file system is unmounted or the channel closed. Each is answered
// on its own: one that waits for the platform holds up others that need it, and no more.
func (c *channel) serve(answer func(context.Context, message) ([]byte, unix.Errno)) error {
	buf := make([]byte, maxWrite+4096)
	for {
		n, err := c.dev.Read(buf)
		switch {
		case err == nil:
		case errors.Is(err, unix.ENOENT): // a request that was interrupted before it was read
			continue
		case errors.Is(err, unix.ENODEV), errors.Is(err, os.ErrClosed):
			return nil
		default:
			return fmt.Errorf("read from the kernel: %w", err)
		}
		if n < sizeInHeader {
			return fmt.Errorf("the kernel sent %d bytes", n)
		}
		m := message{
			op: le.Uint32(buf[4:]), unique: le.Uint64(buf[8:]), node: le.Uint64(buf[16:]),
			body: bytes.Clone(buf[sizeInHeader:n]),
		}
		switch m.op {
		case opForget, opBatchForget: // have no answer
		case opInterrupt:
			c.interrupt(m)
		default:
			ctx := c.begin(m.unique)
			go func() {
				out, errno := answer(ctx, m)
				c.end(m.unique)
				c.reply(m.unique, out, errno)
			}()
		}
	}
}

func (c *channel) begin(unique uint64) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running[unique] = cancel
	return ctx
}

func (c *channel) end(unique uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running[unique]()
	delete(c.running, unique)
}

func (c *channel) interrupt(m message) {
	if len(m.body) < 8 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if cancel := c.running[le.Uint64(m.body)]; cancel != nil {
		cancel()
	}
}

func (c *channel) reply(unique uint64, out []byte, errno unix.Errno) {
	if errno != 0 {
		out = nil
	}
	h := le.AppendUint32(nil, uint32(sizeOutHeader+len(out)))
	h = le.AppendUint32(h, uint32(-int32(errno)))
	h = le.AppendUint64(h, unique)
	// It fails if the one who asked has gone.
	_, _ = c.dev.Write(append(h, out...))
}

// text is a name in a request, which ends with a zero.
func text(b []byte) string {
	name, _, _ := bytes.Cut(b, []byte{0})
	return string(name)
}

// tree is a small file system. Nodes are numbered; 1 is its root.
type tree interface {
	lookup(parent uint64, name string) (node uint64, ok bool)
	attr(node uint64) (mode uint32, size uint64, ok bool)
	list(node uint64) []listed
	mkdir(parent uint64, name string) (node uint64, errno unix.Errno)
	rmdir(parent uint64, name string) unix.Errno
	open(node uint64, flags uint32) (handle, unix.Errno)
}

// listed is what a directory has.
type listed struct {
	name string
	node uint64
}

// handle is an open file.
type handle interface {
	read(ctx context.Context) ([]byte, unix.Errno) // all of it
	write(off uint64, b []byte) unix.Errno
	flush() unix.Errno // when a descriptor is closed
}

// mounted is a tree that is served.
type mounted struct {
	tree
	dir     string
	mu      sync.Mutex
	handles map[uint64]handle
	last    uint64
}

// rootNode is the number of a file system's root (FUSE_ROOT_ID).
const rootNode = 1

// mount mounts a tree. What the directory had before is hidden until it is unmounted.
func mount(t tree, dir string) (*channel, *mounted, error) {
	c, err := openChannel("/dev/fuse")
	if err != nil {
		return nil, nil, err
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions", c.fd)
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("swtee-emulated", dir, "fuse.swtee", flags, options); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("mount on %s: %w", dir, err), unix.Close(c.fd))
	}
	c.connected()
	return c, &mounted{tree: t, dir: dir, handles: map[uint64]handle{}}, nil
}

func (m *mounted) unmount() error { return unix.Unmount(m.dir, unix.MNT_DETACH) }

// attributes of a node (struct fuse_attr).
func (m *mounted) attributes(node uint64) ([]byte, bool) {
	mode, size, ok := m.attr(node)
	if !ok {
		return nil, false
	}
	b := make([]byte, sizeAttr)
	le.PutUint64(b, node)
	le.PutUint64(b[8:], size)
	le.PutUint32(b[60:], mode)
	le.PutUint32(b[64:], 1)     // links
	le.PutUint32(b[80:], 4<<10) // block size
	return b, true
}

// entry is struct fuse_entry_out: nothing is cached.
func (m *mounted) entry(node uint64) ([]byte, unix.Errno) {
	a, ok := m.attributes(node)
	if !ok {
		return nil, unix.ENOENT
	}
	b := make([]byte, 40)
	le.PutUint64(b, node)
	return append(b, a...), 0
}

// answer answers a request.
func (m *mounted) answer(ctx context.Context, r message) ([]byte, unix.Errno) {
	if len(r.body) < fixed[r.op] {
		return nil, unix.EINVAL
	}
	switch r.op {
	case opInit:
		b := make([]byte, 64)
		le.PutUint32(b, protocolMajor)
		le.PutUint32(b[4:], protocolMinor)
		le.PutUint32(b[20:], maxWrite)
		return b, 0
	case opLookup:
		if node, ok := m.lookup(r.node, text(r.body)); ok {
			return m.entry(node)
		}
		return nil, unix.ENOENT
	case opGetattr, opSetattr: // opening for writing truncates
		a, ok := m.attributes(r.node)
		if !ok {
			return nil, unix.ENOENT
		}
		return append(make([]byte, 16), a...), 0
	case opMkdir:
		node, errno := m.mkdir(r.node, text(r.body[8:]))
		if errno != 0 {
			return nil, errno
		}
		return m.entry(node)
	case opRmdir:
		return nil, m.rmdir(r.node, text(r.body))
	case opMknod, opCreate:
		return nil, unix.EACCES
	case opUnlink:
		return nil, unix.EPERM
	case opStatfs:
		return make([]byte, 80), 0
	case opReaddir:
		return m.readdir(r), 0
	case opOpendir:
		return make([]byte, 16), 0
	case opReleasedir, opDestroy:
		return nil, 0
	}
	return m.file(ctx, r)
}

// fixed are the lengths of what requests begin with, in bytes.
var fixed = map[uint32]int{opMkdir: 9, opOpen: 8, opRead: 40, opWrite: 40, opRelease: 8, opFlush: 8, opReaddir: 40}

// file answers requests about open files.
func (m *mounted) file(ctx context.Context, r message) ([]byte, unix.Errno) {
	if r.op == opOpen {
		return m.opened(r)
	}
	if _, known := fixed[r.op]; !known {
		return nil, unix.ENOSYS
	}
	id := le.Uint64(r.body)
	m.mu.Lock()
	h := m.handles[id]
	if r.op == opRelease {
		delete(m.handles, id)
	}
	m.mu.Unlock()
	if h == nil {
		return nil, unix.EBADF
	}
	switch r.op {
	case opRead:
		b, errno := h.read(ctx)
		off := min(le.Uint64(r.body[8:]), uint64(len(b)))
		return b[off:min(off+uint64(le.Uint32(r.body[16:])), uint64(len(b)))], errno
	case opWrite:
		data := r.body[fixed[opWrite]:]
		if n := le.Uint32(r.body[16:]); int(n) != len(data) {
			return nil, unix.EINVAL
		}
		if errno := h.write(le.Uint64(r.body[8:]), data); errno != 0 {
			return nil, errno
		}
		return append(le.AppendUint32(nil, uint32(len(data))), 0, 0, 0, 0), 0
	case opFlush:
		return nil, h.flush()
	}
	return nil, 0
}

func (m *mounted) opened(r message) ([]byte, unix.Errno) {
	h, errno := m.open(r.node, le.Uint32(r.body))
	if errno != 0 {
		return nil, errno
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last++
	m.handles[m.last] = h
	const directIO = 1 // FOPEN_DIRECT_IO: sizes say nothing
	b := le.AppendUint64(nil, m.last)
	return append(b, directIO, 0, 0, 0, 0, 0, 0, 0), 0
}

// readdir lists a directory (struct fuse_dirent).
func (m *mounted) readdir(r message) []byte {
	skip, room := le.Uint64(r.body[8:]), int(le.Uint32(r.body[16:]))
	all := append([]listed{{".", r.node}, {"..", r.node}}, m.list(r.node)...)
	var out []byte
	for i, e := range all {
		if uint64(i) < skip {
			continue
		}
		mode, _, _ := m.attr(e.node)
		b := le.AppendUint64(le.AppendUint64(nil, e.node), uint64(i+1))
		b = le.AppendUint32(le.AppendUint32(b, uint32(len(e.name))), mode>>12)
		b = append(b, e.name...)
		b = append(b, make([]byte, (8-len(b)%8)%8)...)
		if len(out)+len(b) > room {
			break
		}
		out = append(out, b...)
	}
	return out
}
