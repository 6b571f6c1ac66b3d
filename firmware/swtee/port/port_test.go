package port

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// connect serves one end of a connection, and returns the other.
func connect(t testing.TB, answer func(Type, []byte) Answer) net.Conn {
	t.Helper()
	guest, host := net.Pipe()
	t.Cleanup(func() { _ = guest.Close() })
	go func() {
		_ = Serve(host, answer)
		_ = host.Close()
	}()
	return guest
}

func TestAskAndServe(t *testing.T) {
	var data [64]byte
	data[0] = 7
	digest := [48]byte{1, 2}
	guest := connect(t, func(kind Type, b []byte) Answer {
		switch kind {
		case Hello:
			text, _ := json.Marshal(About{Emulated: true, Technology: "tdx", Label: "label"})
			return Answer{Data: text}
		case Report:
			if got, vmpl, ok := ParseReport(b); !ok || got != data || vmpl != 3 {
				return Answer{Status: unix.EINVAL}
			}
			return Answer{Data: []byte("report"), More: []byte("table")}
		case Extend:
			if n, got, ok := ParseExtend(b); !ok || n != 3 || got != digest {
				return Answer{Status: unix.EINVAL}
			}
			return Answer{Status: unix.EIO, Firmware: 22, Data: []byte("what a refusal does not have")}
		}
		return Answer{Data: make([]byte, maxAnswer+1)}
	})
	if about, err := AskAbout(guest); err != nil || about != (About{true, "tdx", "label"}) {
		t.Errorf("%+v, %v", about, err)
	}
	a, err := Ask(guest, Report, ReportPayload(data, 3))
	if err != nil || a.Status != 0 || string(a.Data) != "report" || string(a.More) != "table" {
		t.Errorf("a report: %+v, %v", a, err)
	}
	a, err = Ask(guest, Extend, ExtendPayload(3, digest))
	if err != nil || a.Status != unix.EIO || a.Firmware != 22 || len(a.Data) != 0 {
		t.Errorf("a refusal: %+v, %v", a, err)
	}
	if a, err := Ask(guest, Registers, nil); err != nil || a.Status != unix.EFBIG {
		t.Errorf("an answer that is too long: %+v, %v", a, err)
	}
	if _, err := Ask(guest, Report, make([]byte, maxRequest+1)); !errors.Is(err, ErrProtocol) {
		t.Errorf("a request that is too long: %v", err)
	}
	for _, n := range []int{0, 67, 69} {
		if _, _, ok := ParseReport(make([]byte, n)); ok {
			t.Errorf("a request for a report of %d bytes is taken", n)
		}
		if _, _, ok := ParseExtend(make([]byte, n)); ok {
			t.Errorf("a request to extend of %d bytes is taken", n)
		}
	}
}

// stream is both directions of a connection.
type stream struct {
	io.Reader
	io.Writer
}

// TestHostilePeers: neither side believes the other's lengths, or goes on with nonsense.
func TestHostilePeers(t *testing.T) {
	for name, b := range map[string][]byte{
		"other magic":   append([]byte("SWT2"), make([]byte, 8)...),
		"long request":  append([]byte("SWT1\x01\x00\x00\x00"), 129, 0, 0, 0),
		"huge request":  append([]byte("SWT1\x01\x00\x00\x00"), 255, 255, 255, 255),
		"noise":         bytes.Repeat([]byte{0x5a}, 100),
		"half a header": []byte("SWT1"),
		"half a body":   append([]byte("SWT1\x01\x00\x00\x00"), 10, 0, 0, 0, 1),
	} {
		asked := 0
		err := Serve(stream{bytes.NewReader(b), io.Discard}, func(Type, []byte) Answer { asked++; return Answer{} })
		if err == nil || asked != 0 {
			t.Errorf("%s: %v after %d answers", name, err, asked)
		}
	}
	for name, b := range map[string][]byte{
		"other magic":  append([]byte("SWT0"), make([]byte, 12)...),
		"long answer":  append([]byte("SWT1\x00\x00\x00\x00"), 1, 0, 1, 0, 0, 0, 0, 0),
		"sum too long": append([]byte("SWT1\x00\x00\x00\x00"), 1, 0, 0, 0, 0, 0, 1, 0),
		"overflow":     append([]byte("SWT1\x00\x00\x00\x00"), 1, 0, 0, 0, 255, 255, 255, 255),
		"cut":          append([]byte("SWT1\x00\x00\x00\x00"), 9, 0, 0, 0, 0, 0, 0, 0, 1),
		"nothing":      nil,
	} {
		if _, err := Ask(stream{bytes.NewReader(b), io.Discard}, Hello, nil); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzServe(f *testing.F) {
	f.Add(append([]byte("SWT1\x01\x00\x00\x00\x44\x00\x00\x00"), make([]byte, 68)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		err := Serve(stream{bytes.NewReader(b), io.Discard}, func(_ Type, p []byte) Answer {
			if len(p) > maxRequest {
				t.Errorf("a request of %d bytes", len(p))
			}
			return Answer{Data: p}
		})
		if err == nil {
			t.Error("it ends without an error")
		}
	})
}

func FuzzAsk(f *testing.F) {
	f.Add(append([]byte("SWT1\x05\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00"), 1, 2, 3, 4))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := Ask(stream{bytes.NewReader(b), io.Discard}, Hello, nil)
		if err == nil && len(a.Data)+len(a.More) > maxAnswer {
			t.Errorf("an answer of %d bytes", len(a.Data)+len(a.More))
		}
	})
}
