package integration

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/vmlatch/vmlatch/launcher/slot"
)

// binaries is the directory of the programs under test, and raced that of the same programs built
// with the race detector.
var binaries, raced string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "vmlatch-test-*")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binaries, raced = dir, filepath.Join(dir, "race")
	for _, d := range []string{binaries, raced} {
		if err := errors.Join(os.MkdirAll(d, 0o755), os.Chmod(d, 0o755)); err != nil { // for the tests' other users
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	// Programs built with -race wait for a second before they exit, to report races.
	os.Setenv("GORACE", raceOptions)
	builds := []*exec.Cmd{
		// As they are shipped, and with the race detector.
		exec.Command("../scripts/program", binaries, "vmlatch", "latchkey", "swtee", "latchguest", "latchguest-tpm"),
		exec.Command("go", "build", "-race", "-o", raced+"/", "../cmd/vmlatch", "../cmd/latchkey", "../cmd/swtee"),
	}
	if cover := os.Getenv(coverVariable); cover != "" {
		// The programs write the statements that they reach there (make cover).
		os.Setenv("GOCOVERDIR", cover)
		for _, dir := range []string{binaries, raced} {
			builds = append(builds, exec.Command("go", "build", "-race", "-cover", "-covermode=atomic", "-o", dir+"/",
				"../cmd/vmlatch", "../cmd/latchkey", "../cmd/swtee"))
		}
	}
	for _, build := range builds {
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
			return 1
		}
	}
	return m.Run()
}

const raceOptions = "atexit_sleep_ms=10"

// coverVariable names the directory for the programs' coverage.
const coverVariable = "VMLATCH_COVERDIR"

func top() string {
	_, self, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(self), "..")
}

// guestFiles are what "make setup" prepares.
var guestFiles = []string{"OVMF.amdsev.fd", "vmlinuz", "initrd.img"}

func needGuest(t testing.TB) {
	t.Helper()
	for _, f := range guestFiles {
		if _, err := os.Stat(filepath.Join(top(), ".cache/guest", f)); err != nil {
			t.Skipf("%v: run make setup", err)
		}
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skipf("%v: run make setup", err)
	}
}

func TestScripts(t *testing.T) {
	needGuest(t)
	testscript.Run(t, testscript.Params{
		Dir:      "testdata",
		Deadline: time.Now().Add(8 * time.Minute),
		Setup: func(env *testscript.Env) error {
			work := env.WorkDir
			env.Setenv("PATH", raced+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("HOME", work)
			env.Setenv("GORACE", raceOptions)
			env.Setenv("GOCOVERDIR", os.Getenv("GOCOVERDIR"))
			env.Setenv("VMLATCH_RUN_DIR", filepath.Join(work, "run"))
			env.Setenv("VMLATCH_STATE_DIR", filepath.Join(work, "state"))
			env.Setenv("VMLATCH_CACHE_DIR", cacheDir())
			env.Setenv("SWTEE_PLATFORM", platformDir())
			env.Setenv("CMDLINE", "console=ttyS0 quiet vmlatch.secret=0x810000+0xc00")
			env.Setenv("GOOD", filepath.Join(top(), ".cache/guest/vmlinuz"))
			for _, f := range guestFiles {
				if err := os.Symlink(filepath.Join(top(), ".cache/guest", f), filepath.Join(work, f)); err != nil {
					return err
				}
			}
			for name, from := range map[string]string{
				"guest.toml": "examples/sev/guest.toml",
				"plain.toml": "examples/plain/guest.toml",
			} {
				b, err := os.ReadFile(filepath.Join(top(), from))
				if err != nil {
					return err
				}
				if err := os.WriteFile(filepath.Join(work, name), b, 0o644); err != nil {
					return err
				}
			}
			env.Defer(func() { killAll(t, work) })
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"flipbit":      flipbit,
			"flipjson":     flipjson,
			"setjson":      setjson,
			"waitlog":      waitlog,
			"nothing-left": nothingLeft,
			"session":      makeSession,
			"killqemu":     killQEMU,
			"halted":       halted,
		},
	})
}

// platformDir is the one emulated platform of all scripts: making its keys takes time.
func platformDir() string { return filepath.Join(binaries, "platform") }

// cacheDir is one cache for all tests.
func cacheDir() string { return filepath.Join(binaries, "cache") }

// makeSession NAME POLICY: the host's platform file, the owner's session and the
// host's copies of its files.
func makeSession(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 2 {
		ts.Fatalf("usage: session [NAME [POLICY]]")
	}
	name, policy := "guest", "no-debug"
	if len(args) > 0 {
		name = args[0]
	}
	if len(args) > 1 {
		policy = args[1]
	}
	for out, cmd := range map[string][]string{
		"platform.json": {"vmlatch", "platform", "--emulate"},
		"root.pem":      {"swtee", "root"},
		"cek.cert":      {"swtee", "cek"},
	} {
		ts.Check(ts.Exec(cmd[0], cmd[1:]...))
		ts.Check(os.WriteFile(ts.MkAbs(out), []byte(ts.ReadFile("stdout")), 0o644))
	}
	ts.Check(
		ts.Exec("latchkey", "session", "--platform", "platform.json", "--cek", "cek.cert", "--trust-root", "root.pem",
			"--policy", policy, "--name", name, "--out", "."),
	)
}

// flipbit FILE OUT OFFSET: copy a file with one bit changed; a negative offset
// counts from the end.
func flipbit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: flipbit FILE OUT OFFSET")
	}
	b, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	off, err := strconv.Atoi(args[2])
	ts.Check(err)
	if off < 0 {
		off += len(b)
	}
	b[off] ^= 1
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), b, 0o644))
}

// flipjson FILE KEY: change one bit of a base64 value.
func flipjson(ts *testscript.TestScript, neg bool, args []string) {
	editJSON(ts, args, 2, func(m map[string]any) {
		raw, err := base64.StdEncoding.DecodeString(m[args[1]].(string))
		ts.Check(err)
		raw[len(raw)/2] ^= 1
		m[args[1]] = base64.StdEncoding.EncodeToString(raw)
	})
}

// setjson FILE KEY VALUE: set a value; VALUE is JSON.
func setjson(ts *testscript.TestScript, neg bool, args []string) {
	editJSON(ts, args, 3, func(m map[string]any) {
		var v any
		ts.Check(json.Unmarshal([]byte(args[2]), &v))
		m[args[1]] = v
	})
}

func editJSON(ts *testscript.TestScript, args []string, n int, change func(map[string]any)) {
	if len(args) != n {
		ts.Fatalf("wrong number of arguments")
	}
	file := ts.MkAbs(args[0])
	b, err := os.ReadFile(file)
	ts.Check(err)
	var m map[string]any
	ts.Check(json.Unmarshal(b, &m))
	change(m)
	b, err = json.Marshal(m)
	ts.Check(err)
	ts.Check(os.WriteFile(file, b, 0o600))
}

// waitlog NAME PATTERN: wait until the console log of a VM matches.
func waitlog(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: waitlog NAME PATTERN")
	}
	re := regexp.MustCompile(args[1])
	file := filepath.Join(ts.Getenv("VMLATCH_STATE_DIR"), args[0], "console.log")
	var b []byte
	for deadline := time.Now().Add(90 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		b, _ = os.ReadFile(file)
		if re.Match(b) {
			return
		}
	}
	ts.Fatalf("console of %s does not show %q:\n%s", args[0], args[1], b)
}

// processes returns the processes whose command line names the text.
func processes(text string) map[int]string {
	return processesBy(text, "cmdline")
}

// processesOf are those with a directory in their command line or environment, or with a file of it
// open: a helper that gets all as descriptors has it there alone.
func processesOf(work string) map[int]string {
	found := processesBy(work+"/", "cmdline", "environ")
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		pid, err := strconv.Atoi(strings.Split(fd, "/")[2])
		if err != nil || pid == os.Getpid() || found[pid] != "" {
			continue
		}
		if file, _ := os.Readlink(fd); strings.HasPrefix(file, work+"/") {
			found[pid] = "with " + file
		}
	}
	return found
}

func processesBy(text string, files ...string) map[int]string {
	found := map[int]string{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		line := ""
		for _, f := range files {
			b, _ := os.ReadFile(filepath.Join(d, f))
			line += strings.ReplaceAll(string(b), "\x00", " ")
		}
		pid, err := strconv.Atoi(filepath.Base(d))
		if err == nil && strings.Contains(line, text) && pid != os.Getpid() {
			found[pid] = line
		}
	}
	return found
}

// leftovers lists what still exists of the VMs under a work directory.
func leftovers(work string) []string {
	var found []string
	for pid, line := range processesOf(work) {
		found = append(found, fmt.Sprintf("process %d: %.200s", pid, line))
	}
	for _, dir := range []string{"run", "state"} {
		entries, _ := os.ReadDir(filepath.Join(work, dir))
		for _, e := range entries {
			if e.Name() == ".links" || e.Name() == ".peers" {
				continue // is kept, empty
			}
			if e.Name() == ".slots" {
				found = append(found, leases(filepath.Join(work, dir, ".slots"))...)
			} else if e.Name() != ".lock" && e.Name() != ".tpm-ca" && // which is the host's
				!onlyFailure(filepath.Join(work, dir, e.Name())) {
				found = append(found, filepath.Join(dir, e.Name()))
			}
		}
	}
	return found
}

// onlyFailure reports whether a directory holds no more than why a start failed, which
// "vmlatch ps --all" shows until the next one.
func onlyFailure(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && len(entries) == 1 && entries[0].Name() == "failure.json"
}

// leases lists the encryption slots that are still held; the files stay.
func leases(dir string) []string {
	var found []string
	pools, _ := os.ReadDir(dir)
	for _, p := range pools {
		if n, err := (slot.Pool{Dir: dir, Name: p.Name()}).Leased(); n != 0 || err != nil {
			found = append(found, fmt.Sprintf("%d leases of %s, %v", n, p.Name(), err))
		}
	}
	return found
}

// nothing-left: no VM has left a process, a socket or a directory.
func nothingLeft(ts *testscript.TestScript, neg bool, args []string) {
	if found := leftovers(ts.Getenv("WORK")); len(found) > 0 {
		ts.Fatalf("left behind: %s", strings.Join(found, "\n"))
	}
}

func killAll(t testing.TB, work string) {
	for pid := range processesOf(work) {
		if p, err := os.FindProcess(pid); err == nil {
			_ = p.Kill()
		}
	}
}

// killqemu NAME: SIGKILL to QEMU itself, not to the emulator around it.
func killQEMU(ts *testscript.TestScript, neg bool, args []string) {
	killed := false
	for pid, line := range processes(ts.Getenv("WORK") + "/") {
		if strings.HasPrefix(line, "qemu-system") || strings.HasPrefix(line, "/usr/bin/qemu-system") {
			p, err := os.FindProcess(pid)
			ts.Check(err)
			ts.Check(p.Kill())
			killed = true
		}
	}
	if !killed {
		ts.Fatalf("no QEMU is running")
	}
}

var ripRegister = regexp.MustCompile(`RIP=([0-9a-f]{16})`)

// halted NAME: wait until the guest's processor stays in one place, as in edk2's
// CpuDeadLoop: a second of samples, all within 64 bytes.
func halted(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: halted NAME")
	}
	var last uint64
	same := 0
	for deadline := time.Now().Add(90 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		ts.Check(ts.Exec("vmlatch", "qmp", args[0], "human-monitor-command", `{"command-line": "info registers"}`))
		m := ripRegister.FindStringSubmatch(ts.ReadFile("stdout"))
		if m == nil {
			ts.Fatalf("no RIP in %s", ts.ReadFile("stdout"))
		}
		rip, err := strconv.ParseUint(m[1], 16, 64)
		ts.Check(err)
		if rip&^63 != last&^63 && rip-last+32 > 64 {
			same, last = 0, rip
		} else if same++; same == 10 {
			ts.Logf("halted at %#x", rip)
			return
		}
	}
	ts.Fatalf("%s does not halt", args[0])
}
