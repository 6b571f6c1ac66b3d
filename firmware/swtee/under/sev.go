package under

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/firmware/swtee/internal/trap"
)

// issue answers SEV_ISSUE_CMD of /dev/sev: struct sev_issue_cmd is u32 command,
// u64 data, u32 error, packed.
func (s *supervisor) issue(c *trap.Call, arg uint64) {
	h, err := c.Read(arg, 16)
	if err != nil {
		c.Fail(unix.EFAULT)
		return
	}
	command, data := le.Uint32(h), le.Uint64(h[4:])
	c.Watch(arg, 16)
	c.Watch(data, 24)
	err = s.issueCommand(c, command, data)
	if command == issueGetID2 && err == nil && s.free() {
		// QEMU asks the processor for the encryption bit right after this command.
		if leaf := s.processor(); leaf != nil {
			s.tracer.Arm(c, leaf, func() { s.finish(c, nil, arg+12) })
			return
		}
	}
	s.finish(c, err, arg+12)
}

// errLength answers a query for a length: fw_error 4, as from real firmware. Such a query
// is neither counted nor logged.
var errLength = fmt.Errorf("%w: asked for the length", sev.StatusInvalidLength)

// finish ends a command and writes the firmware's status to where the caller wants it.
func (s *supervisor) finish(c *trap.Call, err error, statusAt uint64) {
	if e := c.Write(statusAt, le.AppendUint32(nil, uint32(swtee.Status(err)))); e != nil {
		c.Fail(unix.EFAULT)
		return
	}
	if err != nil {
		s.logRefusal(err)
		c.Fail(swtee.Errno(err))
		return
	}
	c.Return(0)
}

func (s *supervisor) logRefusal(err error) {
	if err != nil && !errors.Is(err, errLength) {
		s.log.Info("refused", "err", err)
	}
}

func (s *supervisor) issueCommand(c *trap.Call, command uint32, data uint64) error {
	switch command {
	case issuePlatformStatus: // packed: u8 major, minor, state; u32 flags; u8 build; u32 guests
		st, err := s.fw.Status()
		if err != nil {
			return err
		}
		b := []byte{st.Major, st.Minor, byte(st.State)}
		b = append(le.AppendUint32(b, st.Flags), st.Build.Build)
		return fault(c.Write(data, le.AppendUint32(b, st.Guests)))
	case issuePDHCertExport: // packed: u64 address, u32 length, twice
		b, err := c.Read(data, 24)
		if err != nil {
			return unix.EFAULT
		}
		pdh, chain := s.fw.Chain().PDH.Bytes(), s.fw.Chain().Bytes()
		if err := errors.Join(s.room(c, b, data+8, pdh), s.room(c, b[12:], data+20, chain)); err != nil {
			return err
		}
		return s.fw.Run(swtee.CmdPDHCertExport, func() error {
			return fault(errors.Join(c.Write(le.Uint64(b), pdh), c.Write(le.Uint64(b[12:]), chain)))
		})
	case issueGetID2: // packed: u64 address, u32 length
		b, err := c.Read(data, 12)
		if err != nil {
			return unix.EFAULT
		}
		if err := s.room(c, b, data+8, s.fw.ID()); err != nil {
			return err
		}
		return s.fw.Run(swtee.CmdGetID, func() error { return fault(c.Write(le.Uint64(b), s.fw.ID())) })
	case issueSNPPlatformStatus: // struct sev_user_data_snp_status, 32 bytes
		return s.fw.Run(swtee.CmdSNPPlatformStatus, func() error {
			b := make([]byte, 32)
			build := swtee.FirmwareBuild()
			b[0], b[1], b[2], b[3] = build.Major, build.Minor, 1, 1 // initialised, RMP too
			le.PutUint32(b[4:], swtee.SNPBuild)
			return fault(c.Write(data, b))
		})
	}
	s.log.Warn("a command of /dev/sev that is not emulated", "command", command)
	return fmt.Errorf("%w: command %d of /dev/sev", sev.StatusUnsupported, command)
}

func fault(err error) error {
	if err != nil {
		return unix.EFAULT
	}
	return nil
}

// room writes the length of bytes to where the caller looks for it, and fails if the
// caller's buffer, an address and a length, is too small.
func (s *supervisor) room(c *trap.Call, pair []byte, lengthAt uint64, b []byte) error {
	addr, n := le.Uint64(pair), le.Uint32(pair[8:])
	switch err := c.Write(lengthAt, le.AppendUint32(nil, uint32(len(b)))); {
	case err != nil:
		return unix.EFAULT
	case addr == 0 || n == 0:
		return errLength
	case n < uint32(len(b)):
		return fmt.Errorf("%w: room for %d bytes of %d", sev.StatusInvalidLength, n, len(b))
	}
	return nil
}

// encryptOp answers KVM_MEMORY_ENCRYPT_OP. For SEV: struct kvm_sev_cmd is u32 id,
// u64 data at 8, u32 error at 16; for TDX: struct kvm_tdx_cmd is u32 id, u32
// flags, u64 data, u64 hw_error.
func (s *supervisor) encryptOp(c *trap.Call, arg uint64) error {
	if arg == 0 {
		return nil // QEMU asks whether SEV is supported at all
	}
	h, err := c.Read(arg, 16)
	if err != nil {
		return unix.EFAULT
	}
	s.free() // by now QEMU has asked the processor what it wanted to know
	id, flags, data := le.Uint32(h), le.Uint32(h[4:]), le.Uint64(h[8:])
	c.Watch(arg, 24)
	c.Watch(data, 24)
	if s.vmType == vmTDX {
		err := s.tdxCommand(c, id, flags, data)
		s.logRefusal(err)
		return err
	}
	if id >= snpLaunchStart {
		err = s.snpCommand(c, id, data)
	} else {
		err = s.sevCommand(c, id, data)
	}
	s.logRefusal(err)
	if e := c.Write(arg+16, le.AppendUint32(nil, uint32(swtee.Status(err)))); e != nil {
		return unix.EFAULT
	}
	return err
}

func (s *supervisor) sevCommand(c *trap.Call, id uint32, data uint64) error {
	switch id {
	case sevInit, sevESInit, sevInit2:
		return s.initialise(c, id, data)
	}
	if s.guest == nil {
		return fmt.Errorf("%w: command %d before the VM was initialised for SEV", unix.ENOTTY, id)
	}
	switch id {
	case sevLaunchStart:
		return s.launchStart(c, data)
	case sevLaunchUpdateData: // u64 address, u32 length
		b, err := c.Read(data, 12)
		if err != nil {
			return unix.EFAULT
		}
		addr := le.Uint64(b)
		if addr%16 != 0 {
			return fmt.Errorf("%w: LAUNCH_UPDATE_DATA at %#x, must be aligned to 16", sev.StatusInvalidAddress, addr)
		}
		contents, err := c.Read(addr, int(le.Uint32(b[8:])))
		if err != nil {
			return unix.EFAULT
		}
		gpa := s.gpaOf(addr)
		if err := s.guest.LaunchUpdateData(gpa, contents); err != nil {
			return err
		}
		s.opt.Record.add(Region{GPA: gpa, Type: sev.PageNormal, Measured: true, Contents: contents, hva: addr})
		s.notePlace(addr)
		return nil
	case sevLaunchUpdateVMSA:
		return s.guest.LaunchUpdateVMSA(s.registerPages())
	case sevLaunchMeasure:
		return s.launchMeasure(c, data)
	case sevLaunchSecret:
		return s.launchSecret(c, data)
	case sevLaunchFinish:
		return s.guest.LaunchFinish()
	case sevGuestStatus: // u32 handle, policy, state
		state, err := s.guest.Status()
		if err != nil {
			return err
		}
		b := le.AppendUint32(le.AppendUint32(nil, s.guest.Handle()), uint32(s.guest.Policy()))
		return fault(c.Write(data, le.AppendUint32(b, uint32(state))))
	case sevAttestationReport: // mnonce 16 bytes, u64 address, u32 length
		b, err := c.Read(data, 28)
		if err != nil {
			return unix.EFAULT
		}
		if err := s.room(c, b[16:], data+24, make([]byte, swtee.AttestationReportSize)); err != nil {
			return err
		}
		report, err := s.guest.AttestationReport([16]byte(b[:16]))
		if err != nil {
			return err
		}
		return fault(c.Write(le.Uint64(b[16:]), report))
	}
	s.log.Warn("a SEV command that is not emulated", "command", id)
	return fmt.Errorf("%w: SEV command %d", unix.EINVAL, id)
}

// initialise answers KVM_SEV_INIT, KVM_SEV_ES_INIT and KVM_SEV_INIT2 (struct
// kvm_sev_init: u64 vmsa_features, u32 flags, u16 ghcb_version, 48 bytes in all).
func (s *supervisor) initialise(c *trap.Call, id uint32, data uint64) error {
	cmd := map[uint32]swtee.Command{sevInit: swtee.CmdInit, sevESInit: swtee.CmdESInit, sevInit2: swtee.CmdInit2}[id]
	var features uint64
	if id == sevInit2 {
		b, err := c.Read(data, 48)
		if err != nil {
			return unix.EFAULT
		}
		features = le.Uint64(b)
		flags, ghcb := le.Uint32(b[8:]), le.Uint16(b[12:])
		plain := s.vmType == vmSEV
		if flags != 0 || ghcb > 2 || plain && ghcb != 0 || s.vmType == vmSNP && ghcb == 1 {
			return fmt.Errorf("%w: INIT2 with flags %#x, GHCB version %d", unix.EINVAL, flags, ghcb)
		}
	}
	if (s.vmType == vmDefault) != (id != sevInit2) {
		return fmt.Errorf("%w: %s with VM type %d", unix.EINVAL, cmd, s.vmType)
	}
	if features&^uint64(vmsaFeatures) != 0 || features != 0 && s.vmType == vmSEV {
		return fmt.Errorf("%w: vmsa_features %#x", unix.EINVAL, features)
	}
	s.features = features
	if s.vmType == vmSNP {
		s.features |= 1 // SNP active
		s.snp = s.fw.NewSNPGuest()
		s.opt.Record.guest(s.snp, nil)
		return s.snp.Init(s.features)
	}
	if s.guest == nil {
		s.guest = s.fw.NewGuest()
	}
	return s.guest.Init(cmd, id == sevESInit || s.vmType == vmSEVES, features)
}

// launchStart answers KVM_SEV_LAUNCH_START: u32 handle, policy; u64 address and
// u32 length of the owner's certificate (at 8) and of the session (at 24).
func (s *supervisor) launchStart(c *trap.Call, data uint64) error {
	b, err := c.Read(data, 40)
	if err != nil {
		return unix.EFAULT
	}
	read := func(pair []byte) ([]byte, error) {
		addr, n := le.Uint64(pair), le.Uint32(pair[8:])
		if addr == 0 {
			return nil, nil
		}
		if n > 64<<10 {
			return nil, unix.EINVAL
		}
		b, err := c.Read(addr, int(n))
		return b, fault(err)
	}
	owner, err := read(b[8:])
	if err != nil {
		return err
	}
	blob, err := read(b[24:])
	if err != nil {
		return err
	}
	if err := s.guest.LaunchStart(sev.Policy(le.Uint32(b[4:])), owner, blob); err != nil {
		return err
	}
	s.log.Info("LAUNCH_START", "policy", s.guest.Policy(), "session", owner != nil)
	return fault(c.Write(data, le.AppendUint32(nil, s.guest.Handle())))
}

// launchMeasure answers KVM_SEV_LAUNCH_MEASURE: u64 address, u32 length. QEMU asks for
// the length first, which real firmware does not count as a measurement.
func (s *supervisor) launchMeasure(c *trap.Call, data uint64) error {
	b, err := c.Read(data, 12)
	if err != nil {
		return unix.EFAULT
	}
	if err := s.room(c, b, data+8, make([]byte, sev.MeasurementSize)); err != nil {
		return err
	}
	s.place()
	s.opt.Record.place(s.gpaOf)
	m, err := s.guest.LaunchMeasure()
	if err != nil {
		return err
	}
	s.log.Info("LAUNCH_MEASURE", "digest", fmt.Sprintf("%x", s.guest.LaunchDigest()))
	return fault(c.Write(le.Uint64(b), m.Bytes()))
}

// launchSecret answers KVM_SEV_LAUNCH_SECRET: u64 address and u32 length of the
// header (at 0), of guest memory (at 16) and of the packet's data (at 32).
func (s *supervisor) launchSecret(c *trap.Call, data uint64) error {
	b, err := c.Read(data, 44)
	if err != nil {
		return unix.EFAULT
	}
	const most = 64 << 10 // far more than a secret can have
	headerLen, guestAddr, guestLen, dataLen := le.Uint32(b[8:]), le.Uint64(b[16:]), le.Uint32(b[24:]), le.Uint32(b[40:])
	if headerLen > most || guestLen > most || dataLen > most {
		return fmt.Errorf("%w: secret of %d bytes", sev.StatusInvalidLength, dataLen)
	}
	header, err1 := c.Read(le.Uint64(b), int(headerLen))
	packet, err2 := c.Read(le.Uint64(b[32:]), int(dataLen))
	if err1 != nil || err2 != nil {
		return unix.EFAULT
	}
	plain, err := s.guest.LaunchSecret(header, packet, int(guestLen))
	if err != nil {
		return err
	}
	defer clear(plain)
	s.log.Info("LAUNCH_SECRET", "gpa", fmt.Sprintf("%#x", s.gpaOf(guestAddr)), "bytes", len(plain))
	s.opt.Record.inject(s.gpaOf(guestAddr), plain)
	return fault(c.Write(guestAddr, plain))
}
