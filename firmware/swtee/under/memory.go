package under

import (
	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/firmware/swtee/internal/trap"
)

// recordSlot tracks where guest memory is, and hides from KVM that it should be private:
// the kernel's KVM has no such memory for this VM.
func (s *supervisor) recordSlot(c *trap.Call, arg uint64) {
	b, err := c.Read(arg, 32)
	if err != nil {
		return
	}
	s.slots[le.Uint32(b)] = slot{le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[24:])}
	if flags := le.Uint32(b[4:]); flags&memFlagGuestMemFD != 0 && s.kvm == nil {
		if err := c.Write(arg+4, le.AppendUint32(nil, flags&^memFlagGuestMemFD)); err != nil {
			s.log.Warn("memory slot", "err", err)
		}
	}
}

// gpaOf is the guest-physical address of QEMU's memory.
func (s *supervisor) gpaOf(hva uint64) uint64 {
	for _, m := range s.slots {
		if hva >= m.hva && hva-m.hva < m.size {
			return m.gpa + hva - m.hva
		}
	}
	return swtee.UnknownGPA
}

// notePlace remembers the last page of the report if its address is not known yet: QEMU
// loads firmware before it tells KVM where that is.
func (s *supervisor) notePlace(hva uint64) {
	s.fw.WithReport(func(r *swtee.Report) {
		if n := len(r.Pages); n > 0 && r.Pages[n-1].GPA == nil {
			s.unplaced[n-1] = hva
		}
	})
}

// place fills in the addresses that are known by now.
func (s *supervisor) place() {
	s.fw.WithReport(func(r *swtee.Report) {
		for i, hva := range s.unplaced {
			if gpa := s.gpaOf(hva); gpa != swtee.UnknownGPA {
				r.Pages[i].GPA = &gpa
			}
		}
	})
}

// hvaOf is the reverse of gpaOf.
func (s *supervisor) hvaOf(gpa uint64) (uint64, bool) {
	for _, m := range s.slots {
		if gpa >= m.gpa && gpa-m.gpa < m.size {
			return m.hva + gpa - m.gpa, true
		}
	}
	return 0, false
}

// maxList bounds the lists in KVM's calls.
const maxList = 4096

// readList reads a counted list: a header that begins with the count, then elements of
// equal size.
func readList(c *trap.Call, arg uint64, element, header int) ([]byte, error) {
	h, err := c.Read(arg, 4)
	if err != nil {
		return nil, unix.EFAULT
	}
	n := le.Uint32(h)
	if n > maxList {
		return nil, unix.E2BIG
	}
	b, err := c.Read(arg+uint64(header), int(n)*element)
	if err != nil {
		return nil, unix.EFAULT
	}
	return b, nil
}

// writeList answers with a counted list, or with the count and E2BIG if the
// program has no room for it.
func writeList(c *trap.Call, arg uint64, data []byte, element, header int) error {
	h, err := c.Read(arg, 4)
	if err != nil {
		return unix.EFAULT
	}
	have := len(data) / element
	if err := c.Write(arg, le.AppendUint32(nil, uint32(have))); err != nil {
		return unix.EFAULT
	}
	if int(le.Uint32(h)) < have {
		return unix.E2BIG
	}
	if err := c.Write(arg+uint64(header), data); err != nil {
		return unix.EFAULT
	}
	return nil
}
