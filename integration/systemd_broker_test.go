package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// brokerUnit: the broker's unit is started by its socket, as a user of its own and without a
// network, gets its key and secrets as credentials, reads policies again, and remembers what it
// gave when it is started again.
func brokerUnit(t *testing.T, m *machine) {
	h := newHost(t)
	b := h.newBroker("")
	b.askersDesk(`[[release]]
secret = "disk"
file = "credential:secrets_disk"
mode = "once"
`)
	m.run("mkdir", "-p", "/etc/latchkey/policies", "/etc/latchkey/secrets")
	for from, to := range map[string]string{
		"policy.toml": "policies/p.toml", "root.pem": "policies/root.pem", "bundle.json": "bundle.json",
		"keys/broker.key": "broker.key",
	} {
		text, err := os.ReadFile(filepath.Join(h.work, from))
		if err != nil {
			t.Fatal(err)
		}
		m.write("/etc/latchkey/"+to, string(text))
	}
	m.write("/etc/latchkey/secrets/disk", brokerSecret)
	m.run("chmod", "600", "/etc/latchkey/broker.key", "/etc/latchkey/secrets/disk")
	at := fmt.Sprintf("@vmlatch-test-%d", os.Getpid()) // abstract: it has no place in a file system
	m.write("/etc/systemd/system/latchkey.socket.d/test.conf", "[Socket]\nListenStream=\nListenStream="+at+"\n")
	m.write("/etc/systemd/system/latchkey.service.d/test.conf", // a chroot, as here, forbids the first
		"[Service]\nPrivateUsers=no\nStandardError=append:/run/latchkey.log\n")
	t.Cleanup(func() {
		if t.Failed() {
			said, _ := m.try(
				"sh",
				"-c",
				"cat /run/latchkey.log; systemctl --no-pager status latchkey latchkey.socket",
			)
			t.Logf("the broker said: %s", said)
		}
	})
	m.run("systemctl", "daemon-reload")
	m.run("systemctl", "start", "latchkey.socket")
	first := b.asker()
	if a := first.asks(at); string(a.Secrets["disk"].Value) != brokerSecret {
		t.Fatalf("the guest gets %+v", a)
	}
	if user := m.show("latchkey", "User") + m.show("latchkey", "DynamicUser"); !strings.HasSuffix(user, "yes") {
		t.Errorf("the unit runs as %q", user)
	}
	m.run("systemctl", "reload", "latchkey")
	m.run("systemctl", "restart", "latchkey")
	if a := b.asker().asks(at); a.Denial == nil || a.Denial.Reason != "once" {
		t.Errorf("after a restart another launch gets %+v, want a denial: once", a)
	}
	if a := first.asks(at); string(a.Secrets["disk"].Value) != brokerSecret {
		t.Errorf("after a restart the same launch gets %+v", a)
	}
	m.run("latchkey", "audit", "verify", "/var/lib/latchkey/audit.jsonl")
	if out := m.run("latchkey", "requests", "--state", "/var/lib/latchkey"); !strings.Contains(out, "test-emulated") {
		t.Errorf("requests: %s", out)
	}
	m.run("systemctl", "stop", "latchkey.socket", "latchkey")
	if m.show("latchkey", "Result") != "success" {
		t.Error("the unit does not end successfully")
	}
}
