package twin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/firmware/swtee/attest"
	"github.com/vmlatch/vmlatch/firmware/swtee/port"
)

// addPort gives the twin the port by which the guest asks the platform. Its controller is the last
// device of the bus, so that the addresses of the others stay.
func (l *lines) addPort(fd int) {
	bus := ""
	switch m := l.machine; {
	case strings.Contains(m, "q35"):
		bus = ",bus=pcie.0,addr=0x1e"
	case strings.HasPrefix(m, "pc"):
		bus = ",bus=pci.0,addr=0x1e"
	}
	l.twin.Add(
		"-chardev",
		fmt.Sprintf("socket,id=swtee-port,fd=%d", fd),
		"-device",
		"virtio-serial-pci,id=swtee-serial,disable-legacy=on"+bus,
		"-device",
		"virtserialport,bus=swtee-serial.0,chardev=swtee-port,name="+port.Name,
	)
}

// servePort answers the guest until it has gone. A guest that sends something else is not answered
// any more, as firmware does not answer messages that it cannot decrypt.
func (t *machine) servePort(nc net.Conn) {
	err := port.Serve(nc, t.answer)
	if errors.Is(err, port.ErrProtocol) {
		t.log.Warn("the guest does not speak to its platform as it should, and is not answered any more", "err", err)
		_, _ = io.Copy(io.Discard, nc) // a guest that goes on writing must not be blocked
	}
}

func (t *machine) answer(kind port.Type, payload []byte) port.Answer {
	switch kind {
	case port.Hello:
		b, err := json.Marshal(port.About{Emulated: true, Technology: t.technology(), Label: attest.Label})
		if err != nil {
			return port.Answer{Status: unix.EIO}
		}
		return port.Answer{Data: b}
	case port.Report:
		data, vmpl, ok := port.ParseReport(payload)
		if !ok {
			return port.Answer{Status: unix.EINVAL}
		}
		return t.evidence(data, vmpl)
	case port.Extend:
		register, digest, ok := port.ParseExtend(payload)
		td := t.oracle.record.TD()
		switch {
		case !ok:
			return port.Answer{Status: unix.EINVAL}
		case td == nil:
			return port.Answer{Status: unix.ENOTTY}
		}
		return result(nil, td.Extend(int(register), digest))
	case port.Registers:
		td := t.oracle.record.TD()
		if td == nil {
			return port.Answer{Status: unix.ENOTTY}
		}
		return port.Answer{Data: td.Registers()}
	}
	return port.Answer{Status: unix.ENOTTY}
}

// technology is the guest's, as reports name it.
func (t *machine) technology() (name string) {
	fw, err := t.opt.Firmware()
	if err != nil {
		return ""
	}
	fw.WithReport(func(r *swtee.Report) { name = r.Technology })
	return name
}

// evidence is a report, or a quote.
func (t *machine) evidence(data [64]byte, vmpl uint32) port.Answer {
	if snp := t.oracle.record.SNP(); snp != nil {
		b, err := snp.Report(data, vmpl)
		t.log.Info("SNP_GUEST_REQUEST", "vmpl", vmpl, "err", err)
		return result(b, err)
	}
	if td := t.oracle.record.TD(); td != nil {
		b, err := td.Quote(data)
		t.log.Info("TDX_GET_QUOTE", "err", err)
		return result(b, err)
	}
	return port.Answer{Status: unix.ENOTTY} // SEV and SEV-ES guests cannot ask
}

func result(b []byte, err error) port.Answer {
	if err == nil {
		return port.Answer{Data: b}
	}
	var response swtee.ResponseStatus
	if errors.As(err, &response) {
		return port.Answer{Firmware: uint32(response)}
	}
	a := port.Answer{Status: swtee.Errno(err)}
	if s := swtee.Status(err); s != sev.StatusOK {
		a.Firmware = uint32(s)
	}
	return a
}
