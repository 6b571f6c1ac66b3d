package qmp_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/qmp"
	"github.com/vmlatch/vmlatch/qmp/qmptest"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": []}}`

// received is one message with the files that came with it.
type received struct {
	line  []byte
	files []*os.File
	err   error
}

// receive reads one message from a unix socket.
func receive(u *net.UnixConn) (r received) {
	b, rights := make([]byte, 4096), make([]byte, unix.CmsgSpace(16*4))
	n, m, _, _, err := u.ReadMsgUnix(b, rights)
	if err != nil {
		return received{err: err}
	}
	messages, err := unix.ParseSocketControlMessage(rights[:m])
	r = received{line: b[:n], err: err}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		r.err = errors.Join(r.err, err)
		for _, fd := range fds {
			r.files = append(r.files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return r
}

// TestFileWithALongCommand: the kernel takes only a part of it with the file.
func TestFileWithALongCommand(t *testing.T) {
	c, _ := connect(t, qmptest.Negotiate+"< getfd\n> {\"return\": {}, \"id\": $ID}")
	args := map[string]string{"fdname": strings.Repeat("x", 4<<20)}
	if err := c.ExecuteFile(short(t), "getfd", args, nil, os.Stdin); err != nil {
		t.Error(err)
	}
}

// TestAddFD: QEMU gets the very file that was opened, and the set is named.
func TestAddFD(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ours, theirs, err := qmp.Pair()
	if err != nil {
		t.Fatal(err)
	}
	nc, err := net.FileConn(theirs)
	_ = theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	got := make(chan received, 1)
	go func() {
		fmt.Fprintln(nc, greeting)
		_ = receive(nc.(*net.UnixConn))
		fmt.Fprintln(nc, `{"return": {}, "id": 1}`)
		got <- receive(nc.(*net.UnixConn))
		fmt.Fprintln(nc, `{"return": {"fdset-id": 3, "fd": 17}, "id": 2}`)
	}()
	c, err := qmp.NewConn(short(t), ours, qmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fd, err := qmp.AddFD{Set: 3, Opaque: "disk0", File: f}.Execute(short(t), c)
	if err != nil || fd != 17 {
		t.Errorf("fd %d, %v, want 17", fd, err)
	}
	r := <-got
	if r.err != nil || len(r.files) != 1 {
		t.Fatalf("%d files came, %v, want 1", len(r.files), r.err)
	}
	defer r.files[0].Close()
	want := `{"execute":"add-fd","arguments":{"fdset-id":3,"opaque":"disk0"},"id":2}`
	if line := strings.TrimSpace(string(r.line)); line != want {
		t.Errorf("QEMU reads %s\nwant %s", line, want)
	}
	var a, b unix.Stat_t
	if err := errors.Join(unix.Fstat(int(f.Fd()), &a), unix.Fstat(int(r.files[0].Fd()), &b)); err != nil {
		t.Fatal(err)
	}
	if a.Ino != b.Ino || a.Dev != b.Dev {
		t.Errorf("QEMU has file %d, want %d", b.Ino, a.Ino)
	}
}

// TestFilesNeedASocket: a file cannot pass over a pipe, and nothing is sent then.
func TestFilesNeedASocket(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	go func() {
		fmt.Fprintln(b, greeting)
		buf := make([]byte, 4096)
		_, _ = b.Read(buf)
		fmt.Fprintln(b, `{"return": {}, "id": 1}`)
		for { // the connection is still good
			n, err := b.Read(buf)
			if err != nil {
				return
			}
			var cmd struct {
				Execute string `json:"execute"`
				ID      int    `json:"id"`
			}
			_ = json.Unmarshal(buf[:n], &cmd)
			fmt.Fprintf(b, "{\"return\": {\"status\": %q}, \"id\": %d}\n", cmd.Execute, cmd.ID)
		}
	}()
	c, err := qmp.NewConn(short(t), a, qmp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := (qmp.AddFD{Set: 1, File: os.Stdin}).Execute(short(t), c); err == nil {
		t.Error("a file is passed over a pipe")
	}
	if s, err := (qmp.QueryStatus{}).Execute(short(t), c); err != nil || s.Status != "query-status" {
		t.Errorf("the next command: %+v, %v, want its own reply", s, err)
	}
}

// TestStop: the guest is paused, and what QEMU refuses is an error with its words.
func TestStop(t *testing.T) {
	c, _ := connect(t, qmptest.Negotiate+`
		< stop
		> {"return": {}, "id": $ID}
		< stop
		> {"error": {"class": "GenericError", "desc": "not now"}, "id": $ID}`)
	if err := stop(short(t), c); err != nil {
		t.Error(err)
	}
	err := stop(short(t), c)
	var e *qmp.Error
	if !errors.As(err, &e) || e.Class != "GenericError" || err.Error() != "qmp: stop: not now" {
		t.Errorf("error %v, want qmp: stop: not now", err)
	}
}
