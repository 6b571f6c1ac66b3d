package guestdev

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/swtee/port"
)

// ioctlRound is a round of an ioctl as the kernel makes it.
func ioctlRound(cmd uint32, in []byte, room uint32) []byte {
	b := make([]byte, 32)
	le.PutUint32(b[12:], cmd)
	le.PutUint64(b[16:], 0x1000)
	le.PutUint32(b[24:], uint32(len(in)))
	le.PutUint32(b[28:], room)
	return append(b, in...)
}

// TestSEVGuestDevice plays the kernel's side of an ioctl, round by round.
func TestSEVGuestDevice(t *testing.T) {
	h := &host{technology: snpGuest}
	d := &device{newTestPlatform(t, h)}
	head := make([]byte, sizeRequest)
	head[0] = 1
	le.PutUint64(head[8:], 0x2000)
	le.PutUint64(head[16:], 0x3000)
	body := bytes.Repeat([]byte{5}, 64)
	body = append(le.AppendUint32(body, 2), make([]byte, 28)...)
	round := func(cmd uint32, in []byte, room uint32) []byte {
		out, errno := d.answer(t.Context(), message{op: opIoctl, body: ioctlRound(cmd, in, room)})
		if errno != 0 {
			t.Fatalf("errno %v", errno)
		}
		return out
	}
	if out := round(snpGetReport, nil, 0); le.Uint32(out[4:]) != 4 || len(out) != 16+2*16 {
		t.Errorf("first round %x", out)
	}
	if out := round(snpGetReport, head, sizeRequest); le.Uint32(out[4:]) != 4 || len(out) != 16+4*16 {
		t.Errorf("second round %x", out)
	}
	out := round(snpGetReport, append(head, body...), sizeRequest+sizeReportRsp)
	report := out[16+sizeRequest+offRspReport:]
	if le.Uint32(out) != 0 || !bytes.HasPrefix(report, append(body[:64:64], "vmpl 2, request"...)) {
		t.Errorf("third round %.200q", out)
	}
	bad := bytes.Clone(head)
	bad[0] = 0
	if out := round(snpGetReport, bad, sizeRequest); int32(le.Uint32(out)) != -int32(unix.EINVAL) {
		t.Errorf("version 0: %x", out)
	}
	h.fail = []port.Answer{{Firmware: 0x27}}
	if out := round(snpGetReport, append(head, body...), 0); le.Uint32(out) != 0 || out[16+sizeRequest] != 0x27 {
		t.Errorf("a key that is disabled: %x", out[:80])
	}
	ext := append(bytes.Clone(body), make([]byte, 16)...)
	out = round(snpGetExtReport, append(head, ext...), sizeRequest+sizeReportRsp)
	if le.Uint32(out) != 0 || len(out) != 16+sizeRequest+sizeReportRsp {
		t.Errorf("an extended report without room for certificates: %d bytes", len(out))
	}
	le.PutUint64(ext[offCerts:], 0x4000)
	le.PutUint32(ext[offCertsLen:], pageSize)
	if out := round(snpGetExtReport, append(head, ext...), sizeRequest+sizeReportRsp); le.Uint32(out[4:]) != 4 {
		t.Errorf("a round for the certificates is missing: %x", out[:16])
	}
	out = round(snpGetExtReport, append(head, ext...), sizeRequest+sizeReportRsp+pageSize)
	if page := out[16+sizeRequest+sizeReportRsp:]; len(page) != pageSize || !bytes.Equal(page, make([]byte, pageSize)) {
		t.Error("the table is not empty, as hosts give it")
	}
	le.PutUint64(ext[offCerts:], 0)
	le.PutUint32(ext[offCertsLen:], 1)
	if out := round(snpGetExtReport, append(head, ext...), 0); le.Uint32(out) != 0 {
		t.Errorf("a length without an address: %x", out[:16])
	}
	le.PutUint64(ext[offCerts:], 0x4000)
	for _, length := range []uint32{1, pageSize + 1, maxCerts + pageSize} {
		le.PutUint32(ext[offCertsLen:], length)
		if out := round(snpGetExtReport, append(head, ext...), 0); int32(le.Uint32(out)) != -int32(unix.EINVAL) {
			t.Errorf("room of %d bytes: %x", length, out[:16])
		}
	}
	const derivedKey = 0xC0205301
	request := message{op: opIoctl, body: ioctlRound(derivedKey, nil, 0)}
	if _, errno := d.answer(t.Context(), request); errno != unix.ENOTTY {
		t.Errorf("a derived key: %v", errno)
	}
	h.fail = []port.Answer{{Status: unix.EIO, Firmware: 0x16}}
	out = round(snpGetReport, append(head, body...), 0)
	if int32(le.Uint32(out)) != -int32(unix.EIO) || le.Uint32(out[16+24:]) != 0x16 {
		t.Errorf("a refused message: %x", out[:48])
	}
}
