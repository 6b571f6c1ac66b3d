package integration

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// browser is a headless Chromium, driven by W3C WebDriver (https://www.w3.org/TR/webdriver2/).
type browser struct {
	t       *testing.T
	session string // URL
}

var driverPort = regexp.MustCompile(`started successfully on port (\d+)`)

func newBrowser(t *testing.T) *browser {
	t.Helper()
	needProgram(t, "chromium", "chromedriver")
	cmd := exec.Command("chromedriver", "--port=0")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	said, port := "", []string(nil)
	for buf := make([]byte, 4096); port == nil; port = driverPort.FindStringSubmatch(said) {
		n, err := out.Read(buf)
		if said += string(buf[:n]); err != nil {
			t.Fatalf("chromedriver: %v: %s", err, said)
		}
	}
	b := &browser{t: t, session: "http://127.0.0.1:" + port[1] + "/session"}
	args := []string{
		"--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--window-size=900,1000", "--user-data-dir=" + t.TempDir(),
	}
	if os.Getuid() == 0 {
		args = append(args, "--no-sandbox")
	}
	var made struct {
		ID string `json:"sessionId"`
	}
	b.do("POST", "", map[string]any{"capabilities": map[string]any{"alwaysMatch": map[string]any{
		"goog:chromeOptions": map[string]any{"args": args},
	}}}, &made)
	b.session += "/" + made.ID
	t.Cleanup(func() { b.do("DELETE", "", nil, nil) })
	return b
}

// do asks the driver; out takes the answer's value.
func (b *browser) do(method, path string, in, out any) {
	b.t.Helper()
	var body io.Reader
	if method == "POST" {
		text, err := json.Marshal(in)
		if err != nil {
			b.t.Fatal(err)
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequest(method, b.session+path, body)
	if err != nil {
		b.t.Fatal(err)
	}
	client := http.Client{Timeout: time.Minute}
	resp, err := client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		b.t.Fatalf("%s %s: %s %s", method, path, resp.Status, text)
	}
	if out == nil {
		return
	}
	if err := json.Unmarshal(text, &struct{ Value any }{out}); err != nil {
		b.t.Fatalf("%s: %v", text, err)
	}
}

func (b *browser) open(url string) {
	b.t.Helper()
	b.do("POST", "/url", map[string]any{"url": url}, nil)
}

// shows waits until the page has a text, and returns all of it.
func (b *browser) shows(want string) (text string) {
	b.t.Helper()
	for range 100 {
		b.do("POST", "/execute/sync", map[string]any{
			"script": "return document.body ? document.body.innerText : ''", "args": []any{},
		}, &text)
		if strings.Contains(text, want) {
			return text
		}
		time.Sleep(100 * time.Millisecond)
	}
	b.t.Fatalf("the page lacks %q:\n%s", want, text)
	return ""
}

// click clicks what a CSS selector finds.
func (b *browser) click(selector string) {
	b.t.Helper()
	var found map[string]string
	b.do("POST", "/element", map[string]any{"using": "css selector", "value": selector}, &found)
	for _, id := range found {
		b.do("POST", "/element/"+id+"/click", map[string]any{}, nil)
	}
}

// picture keeps what the page looks like where $VMLATCH_PICTURES says; nowhere if it is not set.
func (b *browser) picture(name string) {
	b.t.Helper()
	var text string
	b.do("GET", "/screenshot", nil, &text)
	png, err := base64.StdEncoding.DecodeString(text)
	if err != nil || !bytes.HasPrefix(png, []byte("\x89PNG")) {
		b.t.Fatalf("screenshot: %v", err)
	}
	if dir := os.Getenv("VMLATCH_PICTURES"); dir != "" {
		if err := os.WriteFile(fmt.Sprintf("%s/%s.png", dir, name), png, 0o644); err != nil {
			b.t.Fatal(err)
		}
	}
}
