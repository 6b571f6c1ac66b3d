package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestOwnersCommandEndsWhole: what an owner's command starts ends with it, also what closes
// its descriptors, leaves its session and forks twice; when it answers, when it is given up,
// and when vmlatch is interrupted or killed.
func TestOwnersCommandEndsWhole(t *testing.T) {
	h := newHost(t).race()
	h.session()
	spec := func(name, timeout, then string) {
		daemon := `(setsid sh -c "exec 3>&- </dev/null >/dev/null 2>&1; exec sleep 7` + name + `31" &) ; ` + then
		h.write(name+".sh", daemon)
		h.write(
			name+".toml",
			read(
				t,
				filepath.Join(top(), "examples/sev/guest.toml"),
			)+"owner = [\"sh\", \""+name+".sh\"]\ntimeout = \""+timeout+"\"\n",
		)
	}
	gone := func(name string) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			out, _ := exec.Command("pgrep", "-f", "sleep 7"+name+"31").Output()
			if strings.TrimSpace(string(out)) == "" {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: the daemon runs on: %s", name, out)
			}
		}
	}
	spec("1", "1m", "exit 4")
	if out, err := h.attempt(h.command("vmlatch", "start", "1.toml", "--emulate")); err == nil {
		t.Errorf("an owner that refuses: %s", out)
	}
	gone("1")
	spec("2", "1s", "exec sleep 100")
	out, _ := h.attempt(h.command("vmlatch", "start", "2.toml", "--emulate"))
	h.shows("an owner that hangs", out, "did not answer within 1s")
	gone("2")
	for name, signal := range map[string]os.Signal{"3": os.Interrupt, "4": syscall.SIGKILL} {
		spec(name, "1m", "touch asked"+name+"; exec sleep 100")
		cmd := h.command("vmlatch", "start", name+".toml", "--emulate")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			if _, err := os.Stat(filepath.Join(h.work, "asked"+name)); err == nil {
				break
			}
			if time.Now().After(end) {
				t.Fatal("the owner was never asked")
			}
		}
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		gone(name)
		h.run("vmlatch", "ps")
	}
}
