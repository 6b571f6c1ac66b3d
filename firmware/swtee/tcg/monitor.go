package tcg

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/qmp"
)

// endpoint is the source of one monitor's clients: a listening socket, or a single
// connection.
type endpoint struct {
	listener net.Listener
	mu       sync.Mutex
	conn     net.Conn
	closed   bool
}

// openMonitors takes over the sockets that the caller meant for QEMU.
func openMonitors(specs []monitorSpec) ([]*endpoint, error) {
	var out []*endpoint
	for _, m := range specs {
		e := &endpoint{}
		var err error
		switch {
		case m.fd >= 0:
			unix.CloseOnExec(m.fd)
			f := os.NewFile(uintptr(m.fd), "monitor "+m.chardev)
			if m.listen {
				e.listener, err = net.FileListener(f)
			} else {
				e.conn, err = net.FileConn(f)
			}
			_ = f.Close()
		default:
			e.listener, err = net.Listen("unix", m.path)
		}
		if err != nil {
			return nil, fmt.Errorf("monitor %s: %w", m.chardev, err)
		}
		out = append(out, e)
	}
	return out, nil
}

func (e *endpoint) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	if e.listener != nil {
		_ = e.listener.Close()
	}
	if e.conn != nil {
		_ = e.conn.Close()
	}
}

// serve answers one client after the other, as QEMU's socket chardev does.
func (e *endpoint) serve(m *monitorServer) {
	if e.listener == nil {
		m.serve(e.conn)
		return
	}
	for {
		c, err := e.listener.Accept()
		if err != nil {
			return
		}
		e.mu.Lock()
		e.conn = c
		closed := e.closed
		e.mu.Unlock()
		if !closed {
			m.serve(c)
		}
		_ = c.Close()
	}
}

// maxCommand is the longest command accepted from a client.
const maxCommand = 1 << 20

// monitorServer is a QMP server in front of the one in QEMU.
type monitorServer struct {
	tcg *machine
	up  *qmp.Conn
}

// client is one connection.
type client struct {
	m          *monitorServer
	conn       net.Conn
	wmu        sync.Mutex
	negotiated bool
}

type request struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments"`
	ID        json.RawMessage `json:"id"`
}

type response struct {
	Return any             `json:"return,omitempty"`
	Error  *responseError  `json:"error,omitempty"`
	ID     json.RawMessage `json:"id,omitempty"`
}

type responseError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *responseError) Error() string { return e.Desc }

func generic(format string, args ...any) error {
	return &responseError{"GenericError", fmt.Sprintf(format, args...)}
}

func (m *monitorServer) serve(nc net.Conn) {
	defer nc.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c := &client{m: m, conn: nc}
	if c.send(map[string]any{"QMP": m.greeting()}) != nil {
		return
	}
	in := bufio.NewScanner(nc)
	in.Buffer(make([]byte, 4096), maxCommand)
	for in.Scan() {
		var req request
		if err := json.Unmarshal(in.Bytes(), &req); err != nil || req.Execute == "" {
			_ = c.send(response{Error: &responseError{"GenericError", "swtee: not a QMP command"}})
			continue
		}
		ret, err := c.execute(ctx, req)
		if !c.reply(req.ID, ret, err) {
			return
		}
	}
}

// greeting is QEMU's own, without out-of-band execution, which ends here.
func (m *monitorServer) greeting() map[string]json.RawMessage {
	g := map[string]json.RawMessage{}
	_ = json.Unmarshal(m.up.Greeting(), &g)
	g["capabilities"] = json.RawMessage("[]")
	return g
}

func (c *client) execute(ctx context.Context, req request) (any, error) {
	if req.Execute == "qmp_capabilities" {
		if !c.negotiated {
			c.negotiated = true
			sub := c.m.up.Subscribe(1024)
			context.AfterFunc(ctx, sub.Close)
			go c.events(ctx, sub)
		}
		return struct{}{}, nil
	}
	if !c.negotiated {
		return nil, &responseError{
			qmp.ClassCommandNotFound,
			"Expecting capabilities negotiation with 'qmp_capabilities'",
		}
	}
	if answer, ok := sevCommands[req.Execute]; ok {
		t := c.m.tcg
		t.mu.Lock()
		defer t.mu.Unlock()
		return answer(t, req.Arguments)
	}
	if req.Execute == "cont" {
		if err := c.m.tcg.launchFinish(); err != nil {
			return nil, generic("sev_launch_finish: %v", err)
		}
	}
	var args any
	if req.Arguments != nil {
		args = req.Arguments
	}
	var ret json.RawMessage
	err := c.m.up.Execute(ctx, req.Execute, args, &ret)
	return ret, err
}

func (c *client) reply(id json.RawMessage, ret any, err error) bool {
	if err == nil {
		return c.send(response{Return: ret, ID: id}) == nil
	}
	var own *responseError
	var theirs *qmp.Error
	switch {
	case errors.As(err, &own):
	case errors.As(err, &theirs) && theirs.Class != "":
		own = &responseError{theirs.Class, theirs.Desc}
	default:
		return false // QEMU is gone; close the connection
	}
	return c.send(response{Error: own, ID: id}) == nil
}

// events forwards QEMU's events until the client or QEMU disconnects.
func (c *client) events(ctx context.Context, sub *qmp.Subscription) {
	for {
		e, err := sub.Next(ctx)
		if err != nil {
			return
		}
		if e.Name == qmp.EventConnectionLost {
			_ = c.conn.Close()
			return
		}
		msg := map[string]any{"event": e.Name, "timestamp": map[string]int64{
			"seconds": e.Time.Unix(), "microseconds": int64(e.Time.Nanosecond() / 1000),
		}}
		if e.Data != nil {
			msg["data"] = e.Data
		}
		if c.send(msg) != nil {
			return
		}
	}
}

func (c *client) send(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	_, err = c.conn.Write(append(b, '\r', '\n'))
	return err
}

// sevCommands answers the commands of qapi/misc-i386.json that need a platform.
// Error texts are QEMU's (target/i386/sev.c).
var sevCommands = map[string]func(t *machine, args json.RawMessage) (any, error){
	"query-sev": func(t *machine, _ json.RawMessage) (any, error) {
		info := map[string]any{
			"enabled": t.guest != nil, "api-major": 0, "api-minor": 0, "build-id": 0,
			"policy": 0, "state": "uninit", "handle": 0,
		}
		if t.guest != nil {
			b := swtee.FirmwareBuild()
			info["api-major"], info["api-minor"], info["build-id"] = b.Major, b.Minor, b.Build
			info["policy"], info["state"] = uint32(t.guest.Policy()), t.guest.State().String()
			info["handle"] = t.guest.Handle()
		}
		return info, nil
	},
	"query-sev-capabilities": func(t *machine, _ json.RawMessage) (any, error) {
		p := t.opt.Firmware
		return qmp.SEVCapabilities{
			PDH: p.Chain().PDH.Bytes(), CertChain: p.Chain().Bytes(), CPU0ID: p.ID(),
			CBitPos: swtee.CBitPos, ReducedPhysBits: swtee.ReducedPhysBits,
		}, nil
	},
	"query-sev-launch-measure": func(t *machine, _ json.RawMessage) (any, error) {
		if t.guest == nil {
			return nil, generic("SEV launch measurement is not available")
		}
		m, ok := t.guest.Measurement()
		if !ok {
			return nil, generic("SEV launch measurement is not available")
		}
		return map[string][]byte{"data": m.Bytes()}, nil
	},
	"sev-inject-launch-secret": injectSecret,
	"query-sev-attestation-report": func(t *machine, args json.RawMessage) (any, error) {
		var a struct{ MNonce []byte }
		if err := json.Unmarshal(args, &a); err != nil || len(a.MNonce) != 16 {
			return nil, generic("SEV: mnonce must be 16 bytes")
		}
		if t.guest == nil {
			return nil, generic("SEV is not enabled")
		}
		r, err := t.guest.AttestationReport([16]byte(a.MNonce))
		if err != nil {
			return nil, generic("SEV: Failed to get the attestation report: %v", err)
		}
		return map[string][]byte{"data": r}, nil
	},
}

func injectSecret(t *machine, args json.RawMessage) (any, error) {
	var a qmp.SEVInjectLaunchSecret
	if err := json.Unmarshal(args, &a); err != nil {
		return nil, generic("SEV: Failed to decode sev header or secret")
	}
	if t.guest == nil {
		return nil, generic("SEV not enabled for guest")
	}
	if t.guest.State() != swtee.StateLaunchSecret {
		return nil, generic("SEV: Not in correct state. (LSECRET) %x", int(t.guest.State()))
	}
	gpa := uint64(0)
	if a.GPA != nil {
		gpa = *a.GPA
	} else {
		area, ok, err := t.image.SecretArea()
		if err != nil || !ok || area.Size == 0 {
			return nil, generic("SEV: no secret area found in OVMF, gpa must be specified.")
		}
		if uint64(len(a.Secret)) > uint64(area.Size) {
			return nil, generic("SEV: secret of %d bytes does not fit the firmware's area of %d",
				len(a.Secret), area.Size)
		}
		gpa = uint64(area.Base)
	}
	plain, err := t.guest.LaunchSecret(a.PacketHeader, a.Secret, len(a.Secret))
	t.command("LAUNCH_SECRET", err, "gpa", fmt.Sprintf("%#x", gpa), "bytes", len(a.Secret))
	var status sev.Status
	if errors.As(err, &status) {
		return nil, generic("SEV: failed to inject secret ret=-5 fw_error=%d '%s'", uint32(status), status.Text())
	}
	if err != nil {
		return nil, generic("SEV: %v", err)
	}
	defer clear(plain)
	if err := t.qtest.write(gpa, plain); err != nil {
		return nil, generic("SEV: failed to write the secret to guest memory: %v", err)
	}
	return struct{}{}, nil
}
