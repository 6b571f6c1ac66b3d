package tee

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestQuoteService(t *testing.T) {
	for text, want := range map[string]string{
		"/run/qgs.socket": "map[path:/run/qgs.socket type:unix]", "vsock:2:4050": "map[cid:2 port:4050 type:vsock]",
		"vsock:1:4050":         "map[cid:1 port:4050 type:vsock]",
		"unix:/run/qgs.socket": "map[path:/run/qgs.socket type:unix]",
		"a/b:c":                "map[path:a/b:c type:unix]",
	} {
		q, err := parseQuoteService(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSpace(sprint(q.address())); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
	for _, bad := range []string{
		"vsock:", "vsock:2", "vsock:2:", "vsock::4050", "vsock:2:x", "vsock:2:4050:1", "vsock:-1:4050",
		"vsock:4294967295:1", "vsock:2:4294967296", "vsock:0:4050",
		"tcp:127.0.0.1:4050", "inet:1.2.3.4:4050", "VSOCK:2:4050",
	} {
		if q, err := parseQuoteService(bad); err == nil {
			t.Errorf("%s: %+v, want an error", bad, q)
		}
	}
}

func TestQuoteServiceIsReached(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: at("qgs"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: at("dead"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	_ = dead.Close()
	defer l.Close()
	if err := os.WriteFile(at("file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]struct {
		verdict Verdict
		say     string
	}{
		"qgs": {OK, ""}, "missing": {Failed, "no such socket"}, "file": {Failed, "not a socket"},
		"dead": {Failed, "nothing listens"},
	} {
		v, say := quoteService{path: at(name)}.reach()
		if v != want.verdict || !strings.Contains(say, want.say) {
			t.Errorf("%s: %s, %q, want %s, %q", name, v, say, want.verdict, want.say)
		}
	}
	if v, say := (quoteService{cid: 1, port: 1<<32 - 2}).reach(); v == OK {
		t.Errorf("a vsock port where nothing listens: %s, %q", v, say)
	}
}

func sprint(v any) string { return fmt.Sprint(v) }
