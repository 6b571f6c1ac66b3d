package plan_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
	"github.com/vmlatch/vmlatch/launcher/plan"
)

const brokerWords = "panic=-1 latch.key=ed25519:11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo latch.name=a" +
	" latch.broker=port"

// asking is a spec whose guest asks a broker.
func asking(technology, words, connect, more string) string {
	return `
name = "vm"
cpu = "EPYC-Milan-v1"
[firmware]
image = "f"
[kernel]
image = "k"
cmdline = "` + words + `"
[confidential]
technology = "` + technology + `"
[broker]
connect = "` + connect + "\"\n" + more
}

// TestBroker: evidence goes through a port that QEMU connects, and connects again; vmlatch sees
// what the guest states by a pipe. SEV and SEV-ES need no port: vmlatch itself asks.
func TestBroker(t *testing.T) {
	options := func(technology, words, connect string, sockets ...string) string {
		f := testhost.Facts()
		f.Info.Sockets = sockets
		return strings.Join(mustPlan(t, asking(technology, words, connect, ""), f).Argv, "\n")
	}
	for name, c := range map[string]struct {
		got  string
		want []string
	}{
		"unix": {options("sev-snp", brokerWords, "unix:b,c", "reconnect-ms"), []string{
			`path=/specs/b,,c`, "reconnect-ms=1000", "logfile=/dev/fdset/",
			"virtserialport,bus=latch.0,chardev=broker,name=org.vmlatch.broker.0",
		}},
		"tcp, an older QEMU": {options("sev-snp", brokerWords, "tcp:[::1]:8440"), []string{
			"host=::1,port=8440", "reconnect=1",
		}},
	} {
		for _, want := range c.want {
			if !strings.Contains(c.got, want) {
				t.Errorf("%s: the command line lacks %q:\n%s", name, want, c.got)
			}
		}
	}
	got := options("sev", brokerWords+" latch.source=injected", "unix:b")
	if strings.Contains(got, "org.vmlatch.broker") {
		t.Errorf("a guest of SEV has a port:\n%s", got)
	}
}

// TestBrokerRefused: what could not work, or would believe any broker, is refused with its key.
func TestBrokerRefused(t *testing.T) {
	for name, c := range map[string]struct{ text, key string }{
		"no address":      {asking("sev-snp", brokerWords, "", ""), "broker.connect"},
		"no port":         {asking("sev-snp", brokerWords, "tcp:host", ""), "broker.connect"},
		"port 0":          {asking("sev-snp", brokerWords, "tcp:host:0", ""), "broker.connect"},
		"another network": {asking("sev-snp", brokerWords, "udp:host:1", ""), "broker.connect"},
		"a list":          {asking("sev-snp", brokerWords, "tcp:a,b:1", ""), "broker.connect"},
		"no path":         {asking("sev-snp", brokerWords, "unix:", ""), "broker.connect"},
		"no key":          {asking("sev-snp", "panic=-1", "unix:b", ""), "kernel.cmdline"},
		"a damaged key": {
			asking("sev-snp", "latch.key=ed25519:x latch.name=a latch.broker=port", "unix:b", ""), "kernel.cmdline",
		},
		"an owner's command": {asking("sev-snp", brokerWords, "unix:b", "[latch]\nowner = [\"x\"]\n"), "latch.owner"},
		"a plain VM":         {"name = \"vm\"\n[broker]\nconnect = \"unix:b\"\n", "broker"},
		"MKTME": {
			"name = \"vm\"\n[confidential]\ntechnology = \"mktme\"\n" +
				"mktme = { object = \"o\", handle-property = \"h\" }\n[broker]\n" +
				"connect = \"unix:b\"\n[latch]\nuntil = \"nothing\"\n",
			"broker",
		},
		"evidence without one": {
			strings.Replace(asking("sev-snp", brokerWords, "unix:b", "[latch]\nuntil = \"evidence\"\n"),
				"[broker]\nconnect = \"unix:b\"\n", "", 1), "latch.until",
		},
		"evidence of SEV": {
			asking("sev", brokerWords, "unix:b", "[latch]\nuntil = \"evidence\"\n"), "latch.until",
		},
	} {
		_, err := planFor(c.text, testhost.Facts())
		if err == nil || !strings.Contains(err.Error(), c.key) {
			t.Errorf("%s: %v, want an error about %s", name, err, c.key)
		}
	}
	p := mustPlan(t, asking("sev-snp", brokerWords, "unix:b", "[latch]\nuntil = \"nothing\"\n"), testhost.Facts())
	if slices.ContainsFunc(p.FDs, func(f plan.FD) bool { return f.Role == "broker-log" }) {
		t.Error("a launch that does not wait looks at what the guest says")
	}
}
