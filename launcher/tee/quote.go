package tee

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/internal/vsock"
)

// quoteService is where Intel's quote generation service listens: on a unix socket, or on
// vsock (QEMU, qapi/sockets.json, SocketAddress).
type quoteService struct {
	path      string
	cid, port uint32 // if path is ""
}

const vsockPrefix = "vsock:"

// parseQuoteService reads quote-socket: a path, or vsock:CID:PORT.
func parseQuoteService(text string) (q quoteService, err error) {
	rest, ok := strings.CutPrefix(text, vsockPrefix)
	if !ok {
		text = strings.TrimPrefix(text, "unix:")
		if scheme(text) != "" {
			return q, fmt.Errorf("%q: must be a path or vsock:CID:PORT, such as vsock:2:4050", text)
		}
		return quoteService{path: text}, nil
	}
	cid, port, _ := strings.Cut(rest, ":")
	for _, n := range []struct {
		text string
		to   *uint32
	}{{cid, &q.cid}, {port, &q.port}} {
		v, err := strconv.ParseUint(n.text, 10, 32)
		if err != nil || v == 1<<32-1 { // VMADDR_CID_ANY, VMADDR_PORT_ANY
			return q, fmt.Errorf("%q: must be a path or vsock:CID:PORT, such as vsock:2:4050", text)
		}
		*n.to = uint32(v)
	}
	if q.cid == 0 {
		return q, fmt.Errorf("%q: CID 0 is the hypervisor's own; the host is 2, the local end 1", text)
	}
	return q, nil
}

// scheme is what stands before a colon that is not part of a path; "" if there is none.
func scheme(text string) string {
	before, _, ok := strings.Cut(text, ":")
	if !ok || strings.ContainsRune(before, '/') {
		return ""
	}
	return before
}

// address is QEMU's form.
func (q quoteService) address() map[string]any {
	if q.path != "" {
		return map[string]any{"type": "unix", "path": q.path}
	}
	return map[string]any{"type": "vsock", "cid": fmt.Sprint(q.cid), "port": fmt.Sprint(q.port)}
}

// reach asks whether the service is there, and may be used by this user.
func (q quoteService) reach() (Verdict, string) {
	if q.path != "" {
		if len(q.path) >= len(unix.RawSockaddrUnix{}.Path) {
			return Failed, fmt.Sprintf(
				"%s: a socket's path has at most %d bytes",
				q.path,
				len(unix.RawSockaddrUnix{}.Path)-1,
			)
		}
		info, err := os.Stat(q.path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return Failed, q.path + ": there is no such socket: the service does not run, or listens on vsock" +
				" (vsock:2:4050)"
		case err != nil:
			return Failed, err.Error()
		case info.Mode()&os.ModeSocket == 0:
			return Failed, q.path + ": not a socket"
		case unix.Access(q.path, unix.W_OK) != nil:
			return Failed, q.path + ": this user may not connect (permission denied)"
		}
		c, err := net.DialTimeout("unix", q.path, quoteTimeout)
		if err != nil {
			return Failed, q.path + ": nothing listens there"
		}
		return OK, closing(c.Close())
	}
	return q.dialVsock()
}

const quoteTimeout = time.Second

func (q quoteService) dialVsock() (Verdict, string) {
	where := fmt.Sprintf("vsock CID %d, port %d", q.cid, q.port)
	switch err := vsock.Reach(q.cid, q.port, quoteTimeout); {
	case err == nil:
		return OK, ""
	case errors.Is(err, vsock.ErrRefused):
		return Failed, where + ": " + err.Error()
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return Failed, where + ": this user may not connect"
	default: // no transport to the CID: a service may still be reachable for QEMU
		return Unknown, where + ": " + err.Error()
	}
}

func closing(err error) string {
	if err != nil {
		return err.Error()
	}
	return ""
}
