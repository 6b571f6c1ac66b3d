package guestdev

import (
	"bytes"
	"context"

	"golang.org/x/sys/unix"
)

// Requests of /dev/sev-guest: _IOWR('S', n, struct snp_guest_request_ioctl).
const (
	snpGetReport    = 0xC0205300
	snpGetExtReport = 0xC0205302
)

// Sizes and offsets (include/uapi/linux/sev-guest.h).
const (
	sizeRequest   = 32 // struct snp_guest_request_ioctl
	sizeReportReq = 96 // struct snp_report_req: user data, privilege level, reserved
	sizeExtReq    = 112
	sizeReportRsp = 4000 // struct snp_report_resp
	offRspReport  = 32   // MSG_REPORT_RSP: status, size, reserved; the report
	offCerts      = 96   // in struct snp_ext_report_req: address, length
	offCertsLen   = 104
	maxCerts      = 0x4000 // SEV_FW_BLOB_MAX_SIZE
	pageSize      = 4096

	statusInvalidParam = 0x16 // of MSG_REPORT_RSP (SNP ABI, table 25)
)

// iovec is memory of the caller's that an ioctl needs.
type iovec struct{ addr, size uint64 }

// device is /dev/sev-guest.
type device struct{ p *platform }

// answer answers a request for the device.
func (d *device) answer(ctx context.Context, r message) ([]byte, unix.Errno) {
	switch r.op {
	case opCuseInit:
		b := make([]byte, 72) // struct cuse_init_out
		le.PutUint32(b, protocolMajor)
		le.PutUint32(b[4:], protocolMinor)
		le.PutUint32(b[12:], 1) // CUSE_UNRESTRICTED_IOCTL
		le.PutUint32(b[16:], pageSize)
		le.PutUint32(b[20:], pageSize)
		return append(b, "DEVNAME=sev-guest\x00"...), 0
	case opOpen:
		return make([]byte, 16), 0
	case opRelease, opFlush:
		return nil, 0
	case opIoctl:
		return d.ioctl(ctx, r.body)
	}
	return nil, unix.ENOSYS
}

// retry asks the kernel to make the call again with memory of the caller's.
func retry(in, out []iovec) ([]byte, unix.Errno) {
	const again = 4 // FUSE_IOCTL_RETRY
	b := le.AppendUint32(le.AppendUint32(nil, 0), again)
	b = le.AppendUint32(le.AppendUint32(b, uint32(len(in))), uint32(len(out)))
	for _, v := range append(in[:len(in):len(in)], out...) {
		b = le.AppendUint64(le.AppendUint64(b, v.addr), v.size)
	}
	return b, 0
}

// result ends a call: a negative errno, and what is written to the caller.
func result(errno unix.Errno, written ...[]byte) ([]byte, unix.Errno) {
	b := append(le.AppendUint32(nil, uint32(-int32(errno))), make([]byte, 12)...)
	for _, w := range written {
		b = append(b, w...)
	}
	return b, 0
}

// ioctl answers one in up to three rounds: the kernel first brings nothing, then the request, then
// what the request points to.
func (d *device) ioctl(ctx context.Context, b []byte) ([]byte, unix.Errno) {
	if len(b) < 32 {
		return nil, unix.EINVAL
	}
	cmd, arg, in := le.Uint32(b[12:]), le.Uint64(b[16:]), b[32:]
	if cmd != snpGetReport && cmd != snpGetExtReport {
		return nil, unix.ENOTTY
	}
	if len(in) != int(le.Uint32(b[24:])) {
		return nil, unix.EINVAL
	}
	request, more := iovec{arg, sizeRequest}, uint64(sizeReportReq)
	if cmd == snpGetExtReport {
		more = sizeExtReq
	}
	if len(in) < sizeRequest {
		return retry([]iovec{request}, []iovec{request})
	}
	if in[0] == 0 { // msg_version
		return result(unix.EINVAL)
	}
	head, body := in[:sizeRequest], in[sizeRequest:]
	arguments, response := iovec{le.Uint64(head[8:]), more}, iovec{le.Uint64(head[16:]), sizeReportRsp}
	if uint64(len(body)) < more {
		return retry([]iovec{request, arguments}, []iovec{request, response})
	}
	certs, errno := certsOf(cmd, body)
	if errno != 0 {
		return result(errno)
	}
	if certs.size > 0 && uint64(le.Uint32(b[28:])) < sizeRequest+sizeReportRsp+certs.size {
		return retry([]iovec{request, arguments}, []iovec{request, response, certs})
	}
	return d.report(ctx, head, body, certs.size)
}

// certsOf is where a caller wants the certificates, whose memory must be whole pages.
func certsOf(cmd uint32, body []byte) (iovec, unix.Errno) {
	if cmd != snpGetExtReport {
		return iovec{}, 0
	}
	v := iovec{le.Uint64(body[offCerts:]), uint64(le.Uint32(body[offCertsLen:]))}
	switch {
	case v.addr == 0:
		v.size = 0
	case v.size > maxCerts || v.size%pageSize != 0:
		return v, unix.EINVAL
	}
	return v, 0
}

func (d *device) report(ctx context.Context, head, body []byte, certs uint64) ([]byte, unix.Errno) {
	response := make([]byte, sizeReportRsp)
	report, f := d.p.report(ctx, [64]byte(body), le.Uint32(body[64:]))
	head = bytes.Clone(head)
	le.PutUint32(head[24:], f.firmware)
	le.PutUint32(head[28:], f.host)
	if f.errno == 0 {
		le.PutUint32(response, f.response)
		le.PutUint32(response[4:], uint32(len(report)))
		copy(response[offRspReport:], report)
	}
	written := [][]byte{head, response}
	if certs > 0 {
		written = append(written, make([]byte, certs)) // hosts give an empty table
	}
	return result(f.errno, written...)
}
