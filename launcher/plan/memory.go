package plan

import (
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/bytesize"
	"github.com/vmlatch/vmlatch/launcher/internal/argv"
)

// Backend is the table [memory-backend]: where the guest's memory comes from. What is
// not set is left to QEMU and the technology.
type Backend struct {
	Type      string        `toml:"type"` // ram or memfd
	Share     *bool         `toml:"share"`
	Prealloc  *bool         `toml:"prealloc"`
	Reserve   *bool         `toml:"reserve"`
	HugePages bytesize.Size `toml:"hugepages"` // page size; memfd only
	Nodes     string        `toml:"nodes"`     // of the host that the memory is on, such as 0 or 0-1; "" for any
}

// HostNodes are the host's nodes that the memory is on; nil for any.
func (m *Backend) HostNodes() []int {
	if m.Nodes == "" {
		return nil
	}
	list, _ := ParseCPUs(m.Nodes) // was looked at
	return list
}

// MemoryID is the id of the memory backend.
const MemoryID = "ram"

func (m *Backend) complete(g *Guest) error {
	f, huge := g.File, m.HugePages
	if m.Type != "" {
		if err := OneOf(f, "memory-backend.type", m.Type, "ram", "memfd"); err != nil {
			return err
		}
	}
	if m.Nodes != "" {
		if _, err := ParseCPUs(m.Nodes); err != nil {
			return f.Errorf("memory-backend.nodes", "%q: must be a list of nodes such as 0 or 0-1", m.Nodes)
		}
	}
	switch {
	case huge != 0 && (huge < 4<<10 || huge&(huge-1) != 0 || g.Memory%huge != 0):
		return f.Errorf("memory-backend.hugepages", "%v: must be a page size that divides memory", huge)
	case m.Prealloc != nil && *m.Prealloc && m.Reserve != nil && !*m.Reserve:
		return f.Errorf("memory-backend.reserve", "false: memory that is taken at once (prealloc) is reserved, too")
	case huge != 0 && m.Type == "ram":
		return f.Errorf("memory-backend.hugepages", `needs type = "memfd"`)
	}
	return nil
}

// build adds a backend where the spec or the technology needs another than QEMU's
// own. Where private memory comes from guest_memfd the backend holds only what the
// guest shares (AMD and Intel document memory-backend-memfd with share=on for it).
func (m *Backend) build(b *Builder) error {
	private := b.Traits.Private
	if b.Traits.Pinned && !b.Emulated() {
		b.plan.MemoryLock = LockedMemory(b.Guest.Memory)
	}
	shared := b.Guest.Shares.virtioFS()
	if private {
		b.Choose("memory budget", b.Guest.Budget(b.Traits).String(),
			"memory, "+b.Guest.Shared().String()+" that it shares with devices, and QEMU's own")
	}
	if *m == (Backend{}) && !private && !shared {
		return nil
	}
	kind, from := m.Type, b.Guest.File.From("memory-backend.type")
	if kind == "" {
		kind, from = "ram", "default"
		if private || shared || m.HugePages != 0 {
			kind, from = "memfd", "the guest shares pages of it"
		}
	}
	object := Object{Type: "memory-backend-" + kind}
	props := map[string]any{"qom-type": object.Type, "id": MemoryID, "size": uint64(b.Guest.Memory)}
	if private {
		props["share"], props["prealloc"] = true, false
	}
	if shared {
		props["share"] = true
	}
	for key, v := range map[string]*bool{"share": m.Share, "prealloc": m.Prealloc, "reserve": m.Reserve} {
		if v != nil {
			props[key] = *v
		}
	}
	if m.HugePages != 0 {
		props["hugetlb"], props["hugetlbsize"] = true, uint64(m.HugePages)
	}
	if nodes := m.HostNodes(); nodes != nil {
		props["host-nodes"], props["policy"] = nodes, "bind"
		b.Choose("memory on nodes", m.Nodes, b.Guest.File.From("memory-backend.nodes"))
	}
	if kind == "memfd" && b.Facts.Info != nil {
		object.Since = "2.12, on Linux"
		if err := b.Facts.Needs("give the guest memory", object); err != nil {
			return err
		}
	}
	b.Option("-object", argv.JSON(props))
	b.Machine.Set("memory-backend", MemoryID)
	b.Choose("memory-backend", kind, from)
	return nil
}

// pinnedBesides is what QEMU pins besides the guest's memory: firmware, ROMs, video
// memory, and some room (libvirt allows as much).
const pinnedBesides = 256 << 20

// LockedMemory is how much memory a guest's QEMU has to pin.
func LockedMemory(memory bytesize.Size) bytesize.Size { return memory + pinnedBesides }

// Bounds of what a confidential guest shares for its devices unless its command line says
// otherwise, in bytes (Linux, arch/x86/mm/mem_encrypt.c, mem_encrypt_setup_arch).
const (
	leastShared = 64 << 20
	mostShared  = 1 << 30
	slotSize    = 2 << 10 // of swiotlb=
)

// Shared is how much memory a confidential guest shares with its devices: bounce buffers, 6 % of
// its memory, or what swiotlb= on its command line says.
func (g *Guest) Shared() bytesize.Size {
	for word := range strings.FieldsSeq(g.Kernel.Cmdline) {
		if value, ok := strings.CutPrefix(word, "swiotlb="); ok {
			slots, _, _ := strings.Cut(value, ",")
			if n, err := strconv.ParseUint(slots, 0, 32); err == nil && n > 0 {
				return bytesize.Size(n * slotSize)
			}
		}
	}
	return min(max(g.Memory*6/100, leastShared), mostShared)
}

// Budget is how much of the host's memory a guest takes at the most: its own, what QEMU needs
// besides, and, where private memory lies apart, what it shares once more.
func (g *Guest) Budget(t Traits) bytesize.Size {
	switch {
	case t.Private:
		return g.Memory + g.Shared() + pinnedBesides
	case t.Confidential:
		return g.Memory + pinnedBesides
	}
	return g.Memory
}
