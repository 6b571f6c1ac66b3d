package plan

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"

	"github.com/vmlatch/vmlatch/launcher/internal/argv"
	"github.com/vmlatch/vmlatch/launcher/internal/tuntap"
)

// VSock is the table [vsock]: sockets between the guest and its host.
type VSock struct {
	CID uint32 `toml:"cid"` // the guest's address; 0 for one that follows from host and name

	on bool
}

// On reports whether the guest has one.
func (v *VSock) On() bool { return v.on }

// Elsewhere takes an address that the guest does not have.
func (v *VSock) Elsewhere() { v.CID = rand.N[uint32](1<<31) + 1<<30 }

// firstCID is the first address that a guest may have (Linux, include/uapi/linux/vm_sockets.h); the
// last one means any.
const firstCID = 3

func (v *VSock) complete(g *Guest) error {
	v.on = g.File.Has("vsock")
	if v.on && g.File.Has("vsock.cid") && (v.CID < firstCID || v.CID == 1<<32-1) {
		return g.File.Errorf("vsock.cid", "%d: must be %d to %d", v.CID, firstCID, uint32(1<<32-2))
	}
	return nil
}

// Address is the guest's CID. One that is not given stays the same for this host and name; two VMs
// with one CID cannot run at once, so that none is ever another's by accident.
func (v *VSock) Address(g *Guest, f *Facts) uint32 {
	if v.CID != 0 {
		return v.CID
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "vmlatch cid v1\x00%s\x00%s", f.MachineID, g.Name))
	return firstCID + binary.LittleEndian.Uint32(sum[:])%(1<<32-2-firstCID)
}

func (v *VSock) build(b *Builder) error {
	if !v.on {
		return nil
	}
	cid := v.Address(b.Guest, b.Facts)
	fd := b.Inherit("vsock", fmt.Sprintf("the kernel's backend of vsock devices, for CID %d", cid),
		func(*Opening) (*os.File, error) { return advised(tuntap.VSock(cid)) })
	b.Option("-device", argv.New("vhost-vsock-pci").Set("id", "vsock0").Set("guest-cid", fmt.Sprint(cid)).
		SetInt("vhostfd", fd).String())
	b.Choose("vsock", fmt.Sprintf("CID %d", cid), b.Guest.File.From("vsock"))
	return nil
}
