package guestdev

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// tsm is configfs-tsm: tsm/report/NAME/{inblob, outblob, …}.
type tsm struct {
	p     *platform
	files []tsmFile
	mu    sync.Mutex
	names map[string]uint64
	dirs  map[uint64]*tsmEntry
	last  uint64
}

// tsmFile is a file of each entry. The kernel shows sizes of text files only.
type tsmFile struct {
	name string
	mode uint32
	size uint64
	kind fileKind
}

type fileKind int

const (
	inblob fileKind = iota
	outblob
	auxblob
	provider
	generation
	privlevel
	privlevelFloor
)

// tsmFiles are those of a technology (Linux, drivers/virt/coco/tsm.c, and who registers with it).
func tsmFiles(technology string) []tsmFile {
	const pageSize = 4096
	list := []tsmFile{
		{"generation", 0o444, pageSize, generation},
		{"provider", 0o444, pageSize, provider},
		{"inblob", 0o200, 0, inblob},
		{"outblob", 0o444, 0, outblob},
	}
	if technology == snpGuest {
		list = append(list, tsmFile{"auxblob", 0o444, 0, auxblob}, tsmFile{"privlevel", 0o200, pageSize, privlevel},
			tsmFile{"privlevel_floor", 0o444, pageSize, privlevelFloor})
	}
	return list
}

// providers are the names under which drivers register.
var providers = map[string]string{snpGuest: "sev_guest", tdxGuest: "tdx_guest"}

// tsmEntry is one directory below report.
type tsmEntry struct {
	mu      sync.Mutex
	in      []byte
	level   uint32
	written uint64 // generation
	read    uint64 // the generation of what follows
	have    bool
	out     []byte
}

// Limits of the driver's (TSM_INBLOB_MAX, TSM_PRIVLEVEL_MAX).
const (
	maxInblob = 64
	maxLevel  = 3
)

// Nodes of the tree: directories, then entries, whose files follow them.
const (
	nodeTSM     = 2
	nodeReport  = 3
	firstEntry  = 256
	perEntry    = 16
	directory   = unix.S_IFDIR | 0o755
	reportsName = "report"
)

func newTSM(p *platform) *tsm {
	return &tsm{
		p: p, files: tsmFiles(p.Technology), names: map[string]uint64{}, dirs: map[uint64]*tsmEntry{},
		last: firstEntry - perEntry,
	}
}

func (t *tsm) entryOf(node uint64) (*tsmEntry, int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, i := t.dirs[node&^(perEntry-1)], int(node%perEntry)-1
	if i >= len(t.files) {
		return nil, 0
	}
	return e, i
}

func (t *tsm) lookup(parent uint64, name string) (uint64, bool) {
	switch {
	case parent == rootNode && name == "tsm":
		return nodeTSM, true
	case parent == nodeTSM && name == reportsName:
		return nodeReport, true
	case parent == nodeReport:
		t.mu.Lock()
		defer t.mu.Unlock()
		node, ok := t.names[name]
		return node, ok
	}
	e, i := t.entryOf(parent)
	at := slices.IndexFunc(t.files, func(f tsmFile) bool { return f.name == name })
	return parent + uint64(at) + 1, e != nil && i < 0 && at >= 0
}

func (t *tsm) attr(node uint64) (mode uint32, size uint64, ok bool) {
	if node <= nodeReport {
		return directory, 0, node >= rootNode
	}
	e, i := t.entryOf(node)
	switch {
	case e == nil:
		return 0, 0, false
	case i < 0:
		return directory, 0, true
	}
	return unix.S_IFREG | t.files[i].mode, t.files[i].size, true
}

func (t *tsm) list(node uint64) (all []listed) {
	switch node {
	case rootNode:
		return []listed{{"tsm", nodeTSM}}
	case nodeTSM:
		return []listed{{reportsName, nodeReport}}
	case nodeReport:
		t.mu.Lock()
		defer t.mu.Unlock()
		for name, n := range t.names {
			all = append(all, listed{name, n})
		}
		slices.SortFunc(all, func(a, b listed) int { return strings.Compare(a.name, b.name) })
		return all
	}
	for i, f := range t.files {
		all = append(all, listed{f.name, node + uint64(i) + 1})
	}
	return all
}

// maxEntries bounds the entries of a guest that makes no end of them.
const maxEntries = 1 << 16

func (t *tsm) mkdir(parent uint64, name string) (uint64, unix.Errno) {
	if parent != nodeReport {
		return 0, unix.EPERM
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.names[name] != 0:
		return 0, unix.EEXIST
	case len(t.names) >= maxEntries:
		return 0, unix.ENOMEM
	}
	t.last += perEntry
	t.names[name], t.dirs[t.last] = t.last, &tsmEntry{}
	return t.last, 0
}

func (t *tsm) rmdir(parent uint64, name string) unix.Errno {
	if parent != nodeReport {
		return unix.EPERM
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	node, ok := t.names[name]
	if !ok {
		return unix.ENOENT
	}
	delete(t.names, name)
	delete(t.dirs, node)
	return 0
}

// open checks what the mode does not keep root from: what cannot be read or written.
func (t *tsm) open(node uint64, flags uint32) (handle, unix.Errno) {
	e, i := t.entryOf(node)
	if e == nil || i < 0 {
		return nil, unix.ENOENT
	}
	f := t.files[i]
	access := flags & unix.O_ACCMODE
	if access != unix.O_WRONLY && f.mode&0o400 == 0 || access != unix.O_RDONLY && f.mode&0o200 == 0 {
		return nil, unix.EACCES
	}
	return &tsmHandle{t: t, e: e, kind: f.kind}, 0
}

// tsmHandle is an open file. A report is read whole at the first read, so that it stays one report
// whatever is written meanwhile.
type tsmHandle struct {
	t    *tsm
	e    *tsmEntry
	kind fileKind

	mu    sync.Mutex
	known bool
	text  []byte // as it was first read
	input []byte // of inblob
	dirty bool
	taken uint64 // the generation that this handle has made; 0 for none
}

func (h *tsmHandle) read(ctx context.Context) ([]byte, unix.Errno) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.known {
		return h.text, 0
	}
	b, errno := h.contents(ctx)
	if errno == 0 {
		h.known, h.text = true, b
	}
	return b, errno
}

func (h *tsmHandle) contents(ctx context.Context) ([]byte, unix.Errno) {
	e := h.e
	e.mu.Lock()
	defer e.mu.Unlock()
	switch h.kind {
	case provider:
		return []byte(providers[h.t.p.Technology] + "\n"), 0
	case generation:
		return fmt.Appendf(nil, "%d\n", e.written), 0
	case privlevelFloor:
		return []byte("0\n"), 0
	case outblob, auxblob:
		if errno := e.fetch(ctx, h.t.p); errno != 0 {
			return nil, errno
		}
		if h.kind == auxblob {
			return nil, 0 // the certificate table, which hosts leave empty
		}
		return e.out, 0
	}
	return nil, unix.EACCES
}

// fetch asks for a report, once for each generation.
func (e *tsmEntry) fetch(ctx context.Context, p *platform) unix.Errno {
	if e.have && e.read == e.written {
		return 0
	}
	if len(e.in) != maxInblob { // also before there is any
		return unix.EINVAL
	}
	out, f := p.report(ctx, [64]byte(e.in), e.level)
	switch {
	case f.errno != 0:
		return f.errno
	case f.response == statusInvalidParam:
		return unix.EINVAL
	case f.response != 0:
		return unix.ENXIO
	}
	e.out, e.read, e.have = out, e.written, true
	return 0
}

func (h *tsmHandle) write(off uint64, b []byte) unix.Errno {
	if h.kind == privlevel {
		n, err := strconv.ParseUint(string(bytes.TrimSpace(b)), 0, 32)
		if err != nil || n > maxLevel {
			return unix.EINVAL
		}
		h.e.mu.Lock()
		defer h.e.mu.Unlock()
		h.e.level = uint32(n)
		h.e.written++
		return 0
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dirty = true // the kernel counts a write that fails, and takes what was written before
	if off > maxInblob || off+uint64(len(b)) > maxInblob {
		return unix.EFBIG
	}
	if need := int(off) + len(b); need > len(h.input) {
		h.input = append(h.input, make([]byte, need-len(h.input))...)
	}
	copy(h.input[off:], b)
	return 0
}

// flush takes over what was written. The kernel does that when the file is closed for good; here
// the close of each of its descriptors shows, and what a later one adds belongs to the same input.
func (h *tsmHandle) flush() unix.Errno {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.dirty {
		return 0
	}
	h.dirty = false
	h.e.mu.Lock()
	defer h.e.mu.Unlock()
	h.e.in = bytes.Clone(h.input)
	if unread := !h.e.have || h.e.read != h.e.written; h.taken == 0 || h.taken != h.e.written || !unread {
		h.e.written++
	}
	h.taken = h.e.written
	return 0
}
