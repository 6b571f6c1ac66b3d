package integration

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
)

var auditHead = regexp.MustCompile(`audit head: (\d+:[0-9a-f]{64})`)

// TestApprovals: a person decides on a page in a browser, or by commands, and the guest gets its
// secret, or none.
func TestApprovals(t *testing.T) {
	t.Parallel()
	h := newHost(t).race()
	b := h.newBroker("")
	h.write("secret", brokerSecret)
	b.askersDesk(strings.Replace(releaseTable, "repeat", "ask", 1))
	b.serve("--approve", "127.0.0.1:0")
	state := func(command string) []string { return append(strings.Fields(command), "--state", "broker-state") }

	first := b.asker()
	answer := first.asks(b.socket)
	if answer.Pending == nil || answer.Pending.Request != 1 {
		t.Fatalf("the broker answers %+v, want pending", answer)
	}
	shown := h.run("latchkey", state("requests")...)
	h.shows("requests", shown, "test-emulated  disk     sev-snp (emulated)", "waits")
	link := strings.TrimSpace(h.run("latchkey", state("requests --page")...))
	page := newBrowser(t)
	page.open(link)
	page.shows("Requests that wait for you")
	text := page.shows("test-emulated")
	for _, want := range []string{"disk", "emulated", "sev-snp"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q:\n%s", want, text)
		}
	}
	page.picture("approvals")
	page.click("button.yes")
	page.shows("Request 1 is approved")
	page.picture("approved")
	if answer = first.asks(b.socket); string(answer.Secrets["disk"].Value) != brokerSecret {
		t.Fatalf("after the approval the broker answers %+v", answer)
	}

	// The link works once, other names get nothing, and without the cookie there is nothing to see.
	site := strings.Split(link, "/?")[0]
	for what, req := range map[string]*http.Request{
		"the link again": request(t, "GET", link, ""), "no cookie": request(t, "GET", site+"/", ""),
		"a decision without one": request(t, "POST", site+"/decide", "request=2&answer=approve&shown=x"),
	} {
		if code := status(t, req); code != http.StatusForbidden {
			t.Errorf("%s: status %d, want 403", what, code)
		}
	}
	other := request(t, "GET", site+"/", "")
	if other.Host = "evil.example"; status(t, other) != http.StatusMisdirectedRequest {
		t.Error("the page answers to another name")
	}

	second := b.asker()
	if answer = second.asks(b.socket); answer.Pending == nil {
		t.Fatalf("another launch: the broker answers %+v, want pending", answer)
	}
	h.run("latchkey", append(state("deny"), "2")...)
	if answer = second.asks(b.socket); answer.Denial == nil {
		t.Errorf("after the denial the broker answers %+v", answer)
	}
	out, err := h.attempt(h.command("latchkey", append(state("approve"), "7")...))
	if err == nil {
		t.Error("a request that there is not was approved")
	}
	h.shows("approve", out, "request 7", "hint: latchkey requests shows those that wait")
	out, _ = h.attempt(h.command("latchkey", append(state("approve"), "2")...))
	h.shows("approve", out, "request 2 is denied already")
	said, _ := h.attempt(h.command("latchkey", state("requests")...))
	head := auditHead.FindStringSubmatch(said)
	if head == nil {
		t.Fatalf("no head of the audit in %s", said)
	}
	b.stop()
	h.run("latchkey", "audit", "verify", "broker-state/audit.jsonl", "--head", head[1])
	h.run("latchkey", state("audit verify")...)
	whole := read(t, filepath.Join(h.work, "broker-state/audit.jsonl"))
	h.write("broker-state/audit.jsonl", whole[:strings.LastIndex(strings.TrimSpace(whole), "\n")+1])
	h.run("latchkey", "audit", "verify", "broker-state/audit.jsonl") // nothing says that it was longer
	var exit *exec.ExitError
	out, err = h.attempt(h.command("latchkey", state("audit verify")...))
	if !errors.As(err, &exit) || exit.ExitCode() != 4 {
		t.Errorf("a log that was cut off behind the broker's back: %v, want code 4: %s", err, out)
	}
	waitNothing(t, h.work)
}

func request(t *testing.T, method, url, form string) *http.Request {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(form))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return req
}

func status(t *testing.T, req *http.Request) int {
	t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// TestHostileHosts: what a host, or a stranger, sends to the broker's program gets nothing, and the
// owner's guest is served all the same.
func TestHostileHosts(t *testing.T) {
	t.Parallel()
	h := newHost(t).race()
	b := h.newBroker("")
	h.write("secret", brokerSecret)
	b.askersDesk(releaseTable)
	b.serve()
	good := b.asker()
	if a := good.asks(b.socket); string(a.Secrets["disk"].Value) != brokerSecret {
		t.Fatalf("the guest gets %+v", a)
	}
	signs := func(change func(r *report.Report)) func(*guestHere) []byte {
		return func(a *guestHere) []byte { return a.with(change) }
	}
	for name, c := range map[string]struct {
		want string // reason of the denial; "" for no answer
		play func(a *guestHere) []byte
	}{
		"a request played again": {"nonce-used", func(a *guestHere) []byte {
			line := a.request()
			a.says(line)
			return a.says(line)
		}},
		"a request on another connection, later": {"nonce-used", func(a *guestHere) []byte {
			line := a.request()
			a.says(line)
			a.dial(b.socket)
			return a.says(line)
		}},
		"the guest's report for the host's key": {"report-data", func(a *guestHere) []byte { // relay
			victim := b.asker()
			victim.dial(b.socket)
			data, err1 := victim.Challenged()
			stolen, err2 := victim.Report(data)
			_, err3 := a.Challenged()
			line, err4 := a.Request(stolen, nil, nil)
			if err := errors.Join(err1, err2, err3, err4); err != nil {
				a.t.Fatal(err)
			}
			return a.says(line)
		}},
		"a second key in one launch": {"launch-has-key", func(a *guestHere) []byte {
			a.Launch = good.Launch
			return a.says(a.request())
		}},
		"another digest":    {"measurement", signs(func(r *report.Report) { r.Measurement[0]++ })},
		"a masked chip":     {"chip-not-allowed", signs(func(r *report.Report) { r.SignerInfo |= 2 })},
		"asked at VMPL 1":   {"policy", signs(func(r *report.Report) { r.VMPL = 1 })},
		"asked by the host": {"report-data", signs(func(r *report.Report) { clear(r.ReportData[:]) })},
		"another purpose":   {"report-data", signs(func(r *report.Report) { r.ReportData[0]++ })},
		"a line cut off": {"", func(a *guestHere) []byte {
			line := a.request()
			_, _ = a.Conn.Write(line[:len(line)/2])
			_ = a.Conn.(*net.UnixConn).CloseWrite()
			rest, _ := io.ReadAll(a.R)
			return rest
		}},
		"a line without an end": {"", func(a *guestHere) []byte {
			chunk := []byte(strings.Repeat("x", 64<<10))
			for range 32 {
				if _, err := a.Conn.Write(chunk); err != nil {
					break
				}
			}
			rest, _ := io.ReadAll(a.R)
			return rest
		}},
		"the messages in another order": {"", func(a *guestHere) []byte {
			return a.says(exchange.AskForStatus(exchange.SHA512{1}))
		}},
		"what is not a message": {"", func(a *guestHere) []byte {
			_ = a.Conn.SetDeadline(time.Now().Add(2 * time.Second))
			return a.says([]byte("GET / HTTP/1.1\r\n\r\n"))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			a := b.asker()
			a.t = t
			a.dial(b.socket)
			line := c.play(a)
			reason := ""
			if answer, err := a.Answer(line); err == nil {
				if answer.Denial == nil {
					t.Fatalf("it is answered by %+v", answer)
				}
				reason = answer.Denial.Reason
			}
			if reason != c.want {
				t.Errorf("denied as %q, want %q", reason, c.want)
			}
			if strings.Contains(string(line), brokerSecret) {
				t.Errorf("the secret is in %s", line)
			}
			if again := b.asker().asks(b.socket); string(again.Secrets["disk"].Value) != brokerSecret {
				t.Errorf("after that the owner's guest gets %+v", again)
			}
		})
	}
	// Slow ones and silent ones hold no guest up.
	for range 200 {
		conn, err := net.Dial("unix", b.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = conn.Write([]byte("{"))
	}
	begin := time.Now()
	if a := b.asker().asks(b.socket); a.Secrets == nil || time.Since(begin) > 10*time.Second {
		t.Errorf("among 200 silent connections the guest gets %+v after %v", a, time.Since(begin))
	}
	events := b.audit()
	if n := len(events["release"]); n < 3 {
		t.Errorf("%d releases in the audit", n)
	}
	b.stop()
	waitNothing(t, h.work)
}

// TestSocketActivation: systemd's own tool passes the sockets, as the shipped units have them.
func TestSocketActivation(t *testing.T) {
	needProgram(t, "systemd-socket-activate")
	h := newHost(t).race()
	b := h.newBroker("")
	h.write("secret", brokerSecret)
	b.askersDesk(releaseTable)
	cmd := exec.Command("systemd-socket-activate", "--listen="+b.socket, "--fdname=guests",
		filepath.Join(binaries, "latchkey"), "serve", "--key", "keys", "--policy", "policy.toml",
		"--bundle", "bundle.json", "--state", "broker-state")
	cmd.Dir, cmd.Env = h.work, h.env
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for range 100 {
		if conn, err := net.Dial("unix", b.socket); err == nil {
			_ = conn.Close()
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if a := b.asker().asks(b.socket); string(a.Secrets["disk"].Value) != brokerSecret {
		t.Errorf("the guest gets %+v", a)
	}
}
