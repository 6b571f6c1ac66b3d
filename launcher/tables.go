package launcher

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"github.com/vmlatch/vmlatch/firmware/tpm/predict"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/qmp"
	"github.com/vmlatch/vmlatch/qmp/qtest"
)

// Tables starts a plan's QEMU, paused, does over qtest what firmware does before it reads the
// tables, reads them, and ends it. Nothing of the guest runs. The plan's directories must be its
// own.
func (p *Plan) Tables(ctx context.Context) (t *predict.TablesFile, err error) {
	if p.Traits.Confidential {
		return nil, &fault.Error{
			Kind: fault.Usage, Op: p.Name, Err: errors.New("a confidential guest is not measured into a TPM"),
			Fix: "latchkey measure predicts its digest",
		}
	}
	if !p.Guest.TPM.On() {
		return nil, &fault.Error{
			Kind: fault.Usage, Op: p.Name, Err: errors.New("the guest has no TPM, which has a table itself"),
			Fix: "write [tpm] into the spec",
		}
	}
	p.AddQtest()
	if err := p.Replaceable(); err != nil { // the guest itself may run
		return nil, err
	}
	runtime.LockOSThread() // QEMU ends with the thread that started it
	defer runtime.UnlockOSThread()
	m, err := p.startOnce(ctx, StartOptions{Hold: true, Foreground: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.Discard(context.WithoutCancel(ctx))) }()
	q := qtest.New(m.qtest)
	stop := context.AfterFunc(ctx, func() { _ = q.Close() })
	defer stop()
	defer q.Close()
	t = &predict.TablesFile{
		Schema: predict.TablesSchema, QEMU: m.conn.Version().String(), Files: predict.Tables{},
	}
	if err := asFirmware(ctx, q, m.conn); err != nil {
		return nil, m.failed(fault.QEMU, err)
	}
	list, err := q.Files()
	if err != nil {
		return nil, m.failed(fault.QEMU, err)
	}
	for _, f := range list {
		if !slices.Contains(predict.TableFiles(), f.Name) {
			continue
		}
		if t.Files[f.Name], err = q.ReadFile(f); err != nil {
			return nil, m.failed(fault.QEMU, err)
		}
	}
	return t, nil
}

// Registers of a machine of type q35 that QEMU makes tables of (edk2, OvmfPkg/Library/
// PlatformInitLib; QEMU, hw/i386/acpi-build.c).
const (
	pciAddress = 0xcf8
	pciData    = 0xcfc

	lpc        = 0x1f << 3 // 00:1f.0
	pmBase     = 0x40
	acpiCtrl   = 0x44
	pcieBase   = 0x60 // of 00:00.0
	offCommand = 0x04
	firstBAR   = 0x10
	behindBAR  = 0x28
)

type pci struct{ q *qtest.Conn }

func (p pci) at(devfn, offset uint32) error {
	return p.q.Out(pciAddress, 1<<31|devfn<<8|offset)
}

func (p pci) read(devfn, offset uint32) (uint32, error) {
	if err := p.at(devfn, offset); err != nil {
		return 0, err
	}
	return p.q.In(pciData)
}

func (p pci) write(devfn, offset, value uint32) error {
	if err := p.at(devfn, offset); err != nil {
		return err
	}
	return p.q.Out(pciData, value)
}

// asFirmware sets up the machine as far as QEMU's tables depend on it: where power management and
// the configuration space of PCI Express are, and where 64-bit BARs begin.
func asFirmware(ctx context.Context, q *qtest.Conn, conn *qmp.Conn) error {
	bus := pci{q}
	for _, w := range []struct{ devfn, offset, value uint32 }{
		{lpc, pmBase, 0x601}, {lpc, acpiCtrl, 0x80}, {0, pcieBase + 4, 0}, {0, pcieBase, 0xe0000001},
	} {
		if err := bus.write(w.devfn, w.offset, w.value); err != nil {
			return err
		}
	}
	base, err := window(ctx, q, conn)
	if err != nil {
		return err
	}
	return bus.mapFirst64(base)
}

// mapFirst64 puts the first 64-bit BAR that there is at an address, with memory decoding on: of
// all of them, the tables have only the lowest address.
func (p pci) mapFirst64(base uint64) error {
	for devfn := uint32(0); devfn < 256; devfn++ {
		id, err := p.read(devfn, 0)
		if err != nil {
			return err
		}
		if id&0xffff == 0xffff {
			continue
		}
		for bar := uint32(firstBAR); bar+4 < behindBAR; bar += 4 {
			kind, err := p.read(devfn, bar)
			if err != nil {
				return err
			}
			if kind&1 != 0 || kind>>1&3 != 2 { // not of 64 bits
				continue
			}
			for _, w := range []struct{ offset, value uint32 }{
				{bar, uint32(base)}, {bar + 4, uint32(base >> 32)},
			} {
				if err := p.write(devfn, w.offset, w.value); err != nil {
					return err
				}
			}
			was, err := p.read(devfn, offCommand)
			if err != nil {
				return err
			}
			return p.write(devfn, offCommand, was&0xffff|2)
		}
	}
	return nil
}

// maxBits bounds the physical address bits that firmware counts on: with more, a guest would need
// page tables of five levels.
const maxBits = 46

// window is where firmware puts 64-bit BARs: the last eighth of the physical addresses, moved down
// below what is reserved (edk2, OvmfPkg/Library/PlatformInitLib/MemDetect.c).
func window(ctx context.Context, q *qtest.Conn, conn *qmp.Conn) (uint64, error) {
	bits, err := physBits(ctx, conn)
	if err != nil {
		return 0, err
	}
	bits = min(bits, maxBits)
	size := uint64(1) << (bits - 3)
	base := uint64(1)<<bits - size
	list, err := q.Files()
	if err != nil {
		return 0, err
	}
	i := slices.IndexFunc(list, func(f qtest.File) bool { return f.Name == "etc/e820" })
	if i < 0 {
		return base, nil
	}
	e820, err := q.ReadFile(list[i])
	return below(base, size, e820), err
}

// below moves a window down below what a map of memory reserves (QEMU,
// hw/i386/e820_memory_layout.h).
func below(base, size uint64, e820 []byte) uint64 {
	const entry, reserved = 20, 2
	le := binary.LittleEndian
	for ; len(e820) >= entry; e820 = e820[entry:] {
		at, length := le.Uint64(e820), le.Uint64(e820[8:])
		if le.Uint32(e820[16:]) == reserved && at < base+size && at+length > base && at >= size {
			base = (at - size) &^ (size - 1)
		}
	}
	return base
}

// physBits is how many bits physical addresses of the guest have.
func physBits(ctx context.Context, conn *qmp.Conn) (uint, error) {
	var cpus []struct {
		Path string `json:"qom-path"`
	}
	if err := conn.Execute(ctx, "query-cpus-fast", nil, &cpus); err != nil {
		return 0, err
	}
	if len(cpus) == 0 {
		return 0, errors.New("QEMU has no processors")
	}
	var bits uint
	err := conn.Execute(ctx, "qom-get", map[string]any{"path": cpus[0].Path, "property": "phys-bits"}, &bits)
	if err != nil {
		return 0, err
	}
	if bits < 32 || bits > 57 {
		return 0, fmt.Errorf("QEMU's processors have %d bits of physical addresses", bits)
	}
	return bits, nil
}
