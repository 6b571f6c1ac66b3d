package under

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/firmware/swtee/internal/trap"
)

func (s *supervisor) snpCommand(c *trap.Call, id uint32, data uint64) error {
	if s.snp == nil {
		return fmt.Errorf("%w: command %d before the VM was initialised for SEV-SNP", unix.ENOTTY, id)
	}
	switch id {
	case snpLaunchStart: // struct kvm_sev_snp_launch_start: u64 policy, u8 gosvw[16], u16 flags, …
		b, err := c.Read(data, 26)
		if err != nil {
			return unix.EFAULT
		}
		if err := noFlags("SNP_LAUNCH_START", b[24:]); err != nil {
			return err
		}
		s.log.Info("SNP_LAUNCH_START", "policy", fmt.Sprintf("%#x", le.Uint64(b)))
		return s.snp.LaunchStart(le.Uint64(b))
	case snpLaunchUpdate:
		return s.snpLaunchUpdate(c, data)
	case snpLaunchFinish:
		return s.snpLaunchFinish(c, data)
	}
	s.log.Warn("an SNP command that is not emulated", "command", id)
	return fmt.Errorf("%w: SNP command %d", unix.EINVAL, id)
}

// snpLaunchUpdate answers KVM_SEV_SNP_LAUNCH_UPDATE: u64 frame number, address
// and length; u8 page type and padding, u16 flags. KVM advances the three past what it took.
func (s *supervisor) snpLaunchUpdate(c *trap.Call, data uint64) error {
	b, err := c.Read(data, 28)
	if err != nil {
		return unix.EFAULT
	}
	if err := noFlags("SNP_LAUNCH_UPDATE", b[26:]); err != nil {
		return err
	}
	frame, addr, n := le.Uint64(b), le.Uint64(b[8:]), le.Uint64(b[16:])
	t := sev.PageType(b[24])
	if n > maxRegion {
		return unix.EINVAL
	}
	contents := make([]byte, n)
	if t != sev.PageZero { // KVM does not read zero pages
		if contents, err = c.Read(addr, int(n)); err != nil {
			return unix.EFAULT
		}
	}
	err = s.snp.LaunchUpdate(t, frame<<12, contents)
	if t == sev.PageCPUID && errors.Is(err, sev.StatusInvalidParam) && len(contents) >= sev.PageSize {
		// The firmware corrects CPUID values that it does not accept, and KVM returns
		// them (SNP ABI, chapter 8.17.2.6): here EAX of the first function.
		contents[40] ^= 1
		_ = c.Write(addr, contents)
	}
	if err != nil {
		return err
	}
	s.opt.Record.add(Region{GPA: frame << 12, Type: t, Measured: t.Measured(), Contents: contents})
	next := le.AppendUint64(nil, frame+n>>12)
	next = le.AppendUint64(next, addr+n)
	return fault(c.Write(data, le.AppendUint64(next, 0)))
}

// noFlags refuses flags, of which KVM knows none.
func noFlags(command string, flags []byte) error {
	if n := le.Uint16(flags); n != 0 {
		return fmt.Errorf("%w: %s with flags %#x", unix.EINVAL, command, n)
	}
	return nil
}

// maxRegion bounds what one command may load.
const maxRegion = 512 << 20

// snpLaunchFinish answers KVM_SEV_SNP_LAUNCH_FINISH: u64 address of the ID block
// and of its authentication, u8 id_block_en, auth_key_en, vcek_disabled, 32 bytes
// of host data, 3 of padding, u16 flags.
func (s *supervisor) snpLaunchFinish(c *trap.Call, data uint64) error {
	b, err := c.Read(data, 56)
	if err != nil {
		return unix.EFAULT
	}
	if err := noFlags("SNP_LAUNCH_FINISH", b[54:]); err != nil {
		return err
	}
	in := swtee.SNPFinish{
		AuthorKey: b[17] != 0, VCEKDisabled: b[18] != 0,
		HostData: [32]byte(b[19:51]), VMSAs: s.registerPages(),
	}
	if b[16] != 0 {
		if in.IDBlock, err = c.Read(le.Uint64(b), sev.IDBlockSize); err != nil {
			return unix.EFAULT
		}
		if in.IDAuth, err = c.Read(le.Uint64(b[8:]), sev.IDAuthSize); err != nil {
			return unix.EFAULT
		}
	}
	err = s.snp.LaunchFinish(in)
	s.fw.WithReport(func(r *swtee.Report) {
		if r.Launch != nil {
			s.log.Info("SNP_LAUNCH_FINISH", "digest", r.Launch.Digest)
		}
	})
	return err
}
