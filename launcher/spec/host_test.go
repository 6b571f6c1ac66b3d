package spec_test

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/spec"
)

var pools = []string{"sev", "sev-es", "tdx"}

// unprivileged is the id of a user without rights.
const unprivileged = 65534

// asUser runs a function as a user that is not root: where the tests run as root, in a
// thread of its own whose identity is changed.
func asUser(t *testing.T, run func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		run()
		return
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this function
		_, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), unprivileged, ^uintptr(0))
		if errno != 0 {
			done <- fmt.Errorf("setresuid: %w", errno)
			return
		}
		run()
		done <- nil
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// environment sets the variables that decide where a user's files are, and no others.
func environment(t *testing.T, set map[string]string) {
	t.Helper()
	all := map[string]string{
		"HOME": "", "XDG_CONFIG_HOME": "", "XDG_RUNTIME_DIR": "", "XDG_STATE_HOME": "", "XDG_CACHE_HOME": "",
		"TMPDIR": "/tmp",
	}
	maps.Copy(all, set)
	for name, value := range all {
		t.Setenv(name, value)
	}
}

func TestDefaultsOfAUser(t *testing.T) {
	uid := os.Geteuid()
	if uid == 0 {
		uid = unprivileged
	}
	temporary := fmt.Sprintf("/tmp/vmlatch-%d", uid)
	for name, c := range map[string]struct {
		environment map[string]string
		file        string
		want        spec.HostConfig
	}{
		"all variables": {
			map[string]string{
				"HOME": "/home/u", "XDG_CONFIG_HOME": "/c", "XDG_RUNTIME_DIR": "/r",
				"XDG_STATE_HOME": "/s", "XDG_CACHE_HOME": "/k",
			},
			"/c/vmlatch/host.toml",
			spec.HostConfig{RunDir: "/r/vmlatch", StateDir: "/s/vmlatch", CacheDir: "/k/vmlatch"},
		},
		"a home alone": {
			map[string]string{"HOME": "/home/u"},
			"/home/u/.config/vmlatch/host.toml",
			spec.HostConfig{
				RunDir: temporary, StateDir: "/home/u/.local/state/vmlatch", CacheDir: "/home/u/.cache/vmlatch",
			},
		},
		"relative directories, which do not count": {
			map[string]string{
				"HOME": "/home/u", "XDG_RUNTIME_DIR": "r", "XDG_STATE_HOME": "s", "XDG_CACHE_HOME": "k",
				"XDG_CONFIG_HOME": "c",
			},
			"",
			spec.HostConfig{RunDir: temporary, StateDir: "/home/u/.local/state/vmlatch"},
		},
		"no home, but a place for logs": {
			map[string]string{"XDG_STATE_HOME": "/s"},
			"",
			spec.HostConfig{RunDir: temporary, StateDir: "/s/vmlatch"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			environment(t, c.environment)
			c.want.QEMU, c.want.Emulate.Swtee, c.want.Logs.Max = "qemu-system-x86_64", "swtee", 16<<20
			asUser(t, func() {
				if got := spec.HostConfigFile(); got != c.file {
					t.Errorf("settings are looked for in %q, want %q", got, c.file)
				}
				got, err := spec.LoadHost("/nonexistent", false, pools)
				if err != nil {
					t.Error(err)
					return
				}
				if diff := cmp.Diff(&c.want, got, cmpopts.IgnoreUnexported(spec.HostConfig{})); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestAUserWithoutAHomeHasNoPlaceForLogs(t *testing.T) {
	environment(t, nil)
	asUser(t, func() {
		_, err := spec.LoadHost("/nonexistent", false, pools)
		if err == nil || !strings.Contains(err.Error(), "set state-dir in host.toml") {
			t.Errorf("%v, want an error that names state-dir", err)
		}
		if c := loadHost(t, `state-dir = "/s"`); c.StateDir != "/s" {
			t.Errorf("state-dir %s, want /s", c.StateDir)
		}
	})
}

// TestDefaultsOfRoot compares what root gets; tests that run as another user compare
// that root's directories are not theirs.
func TestDefaultsOfRoot(t *testing.T) {
	environment(t, map[string]string{
		"HOME": "/home/u", "XDG_CONFIG_HOME": "/c", "XDG_RUNTIME_DIR": "/r",
		"XDG_STATE_HOME": "/s", "XDG_CACHE_HOME": "/k",
	})
	root := []string{"/etc/vmlatch/host.toml", "/run/vmlatch", "/var/lib/vmlatch", "/var/cache/vmlatch"}
	c, err := spec.LoadHost("/nonexistent", false, pools)
	if err != nil {
		t.Fatal(err)
	}
	for i, got := range []string{spec.HostConfigFile(), c.RunDir, c.StateDir, c.CacheDir} {
		if want := root[i]; (got == want) != (os.Geteuid() == 0) {
			t.Errorf("as user %d: %s; root has %s", os.Geteuid(), got, want)
		}
	}
}

// loadHost reads settings from a text.
func loadHost(t *testing.T, text string) *spec.HostConfig {
	t.Helper()
	c, err := spec.LoadHost(hostFile(t, text), true, pools)
	if err != nil {
		t.Error(err)
		return &spec.HostConfig{}
	}
	return c
}

// hostFile makes a host.toml that every user can read.
func hostFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "host.toml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestSettingsOfAHost(t *testing.T) {
	file := hostFile(t, `
run-dir = "/r"
state-dir = "/s"
cache-dir = "/c"
qemu = "/q"
slots = { sev = 0, tdx = 5 }
[emulate]
swtee = "/t"
args = ["--platform", "/p"]
[logs]
max = "1MiB"
keeper = true`)
	got, err := spec.LoadHost(file, true, pools)
	if err != nil {
		t.Fatal(err)
	}
	want := &spec.HostConfig{
		RunDir: "/r", StateDir: "/s", CacheDir: "/c", QEMU: "/q", Slots: map[string]int{"sev": 0, "tdx": 5},
		Emulate: spec.EmulateConfig{Swtee: "/t", Args: []string{"--platform", "/p"}},
		Logs:    spec.LogsConfig{Max: 1 << 20, Keeper: true},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(spec.HostConfig{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got, want := got.SlotDir(), "/r/.slots"; got != want {
		t.Errorf("leases lie in %s, want %s", got, want)
	}
	if got, want := got.Root(), (rundir.Root{Run: "/r", State: "/s", LogMax: 1 << 20}); got != want {
		t.Errorf("VMs live in %+v, want %+v", got, want)
	}
	empty := loadHost(t, "")
	for _, key := range []string{"run-dir", "state-dir", "qemu", "emulate.swtee"} {
		if from := got.From(key); from != file {
			t.Errorf("%s comes from %s, want %s", key, from, file)
		}
		if from := empty.From(key); from != "default" {
			t.Errorf("without a setting %s comes from %s, want default", key, from)
		}
	}
	if from := got.From("other"); from != "default" {
		t.Errorf("a key that is not set comes from %s, want default", from)
	}
}

func TestSettingsThatAreRefused(t *testing.T) {
	for text, want := range map[string]struct{ text, fix string }{
		"rundir = '/r'":      {":1:1: rundir: unknown key", `did you mean "run-dir"?`},
		"\n[Emulate]":        {":2:2: Emulate: unknown key", `did you mean "emulate"?`},
		"qemu = 1":           {":1:8: qemu: must be text in quotes", ""},
		"slots = 5":          {":1:9: slots: must be a table", ""},
		"[slots]\nsev = '5'": {":2:7: slots.sev: must be a number", ""},
		"[slots]\nsevs = 5": {
			": slots.sevs: unknown pool; the pools are sev, sev-es, tdx", `did you mean "sev"?`,
		},
		"[slots]\nwhatever = 5":   {": slots.whatever: unknown pool", ""},
		"[slots]\nsev = -1":       {": slots.sev: -1: must not be negative", ""},
		"emulate.args = 'a'":      {": emulate.args: must be a list of strings", ""},
		"[emulate]\nswtee = ['']": {": emulate.swtee: must be text in quotes", ""},
	} {
		file := hostFile(t, text)
		_, err := spec.LoadHost(file, true, pools)
		e := fault.As(err)
		if e == nil || e.Kind != fault.Spec || !strings.HasPrefix(e.Error(), file) ||
			!strings.Contains(e.Error(), want.text) {
			t.Errorf("%q: %v, want %s%s", text, err, file, want.text)
		} else if e.Fix != want.fix {
			t.Errorf("%q: fix %q, want %q", text, e.Fix, want.fix)
		}
	}
}

// TestAHostsFileThatIsNamedMustExist: without a name it need not, but what is there
// must be readable.
func TestAHostsFileThatIsNamedMustExist(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "host.toml")
	if _, err := spec.LoadHost(missing, true, pools); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file that was named: %v, want %v", err, fs.ErrNotExist)
	}
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, named := range []bool{true, false} {
		if _, err := spec.LoadHost(pipe, named, pools); !errors.Is(err, regular.ErrNotRegular) {
			t.Errorf("a pipe, named: %t: %v, want %v", named, err, regular.ErrNotRegular)
		}
	}
	large := hostFile(t, strings.Repeat("\n", 1<<20+1))
	if _, err := spec.LoadHost(large, false, pools); !errors.Is(err, regular.ErrTooLarge) {
		t.Errorf("a file of more than a mebibyte: %v, want %v", err, regular.ErrTooLarge)
	}
}

func TestDirectoriesBecomeAbsolute(t *testing.T) {
	t.Chdir("/usr")
	for _, c := range []struct{ run, state, wantRun, wantState, err string }{
		{run: "r", state: "s", wantRun: "/usr/r", wantState: "/usr/s"},
		{run: "/r/", state: "../s", wantRun: "/r", wantState: "/s"},
		{run: "/r", state: "/r-logs", wantRun: "/r", wantState: "/r-logs"},
		{run: "/r/run", state: "/r", wantRun: "/r/run", wantState: "/r"},
		{run: "/r", state: "/r", err: "state-dir /r lies in run-dir /r"},
		{run: "/r", state: "/r/logs", err: "state-dir /r/logs lies in run-dir /r"},
		{run: "r", state: "/usr/r/x/y", err: "lies in run-dir /usr/r"},
	} {
		h := spec.HostConfig{RunDir: c.run, StateDir: c.state}
		err := h.MakeAbsolute()
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s and %s: %v, want an error with %q", c.run, c.state, err, c.err)
			}
			continue
		}
		if err != nil || h.RunDir != c.wantRun || h.StateDir != c.wantState {
			t.Errorf("%s and %s: %s and %s, %v, want %s and %s", c.run, c.state, h.RunDir, h.StateDir, err,
				c.wantRun, c.wantState)
		}
	}
}

// TestDirectoriesOfALostWorkingDirectory: a relative path has no meaning where the
// working directory was removed.
func TestDirectoriesOfALostWorkingDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := write(t, filepath.Join(dir, "vm.toml"), "")
	t.Chdir(dir)
	t.Setenv("PWD", "") // or it would be believed
	if err := errors.Join(os.Remove(path), os.Remove(dir)); err != nil {
		t.Fatal(err)
	}
	for _, h := range []spec.HostConfig{{RunDir: "r", StateDir: "/s"}, {RunDir: "/r", StateDir: "s"}} {
		if err := h.MakeAbsolute(); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s and %s: %v, want %v", h.RunDir, h.StateDir, err, fs.ErrNotExist)
		}
	}
}
