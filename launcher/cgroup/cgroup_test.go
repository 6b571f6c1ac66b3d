package cgroup

import (
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// all has every limit.
var all = Limits{
	Memory: 1 << 30, CPU: 1.5, PIDs: 64,
	IO: []IO{
		{Device: "254:0", Path: "/dev/vda", Read: 1 << 20, WriteIOPS: 5},
		{Device: "254:16", Path: "/dev/vdb", Read: 7},
	},
}

// TestFiles: limits are what the kernel's files take, and only those that are set.
func TestFiles(t *testing.T) {
	want := []file{
		{"memory.max", "1073741824"},
		{"memory.swap.max", "0"},
		{"cpu.max", "150000 100000"},
		{"pids.max", "64"},
		{"io.max", "254:0 rbps=1048576 wiops=5"},
		{"io.max", "254:16 rbps=7"},
	}
	if got := all.files(); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := all.Controllers(); !slices.Equal(got, []string{"cpu", "io", "memory", "pids"}) {
		t.Errorf("controllers %q", got)
	}
	none := Limits{}
	if none.On() || !all.On() || len(none.files())+len(none.Controllers())+len(none.properties()) > 0 {
		t.Errorf("without limits: %q, %q, %q", none.files(), none.Controllers(), none.properties())
	}
}

// TestProperties: limits are a scope's properties, and counted as D-Bus counts them.
func TestProperties(t *testing.T) {
	want := "MemoryMax t 1073741824 MemorySwapMax t 0 CPUQuotaPerSecUSec t 1500000 TasksMax t 64" +
		" IOReadBandwidthMax a(st) 2 /dev/vda 1048576 /dev/vdb 7 IOWriteIOPSMax a(st) 1 /dev/vda 5"
	got := all.properties()
	if said := strings.Join(slices.Concat(got...), " "); said != want || len(got) != 6 {
		t.Errorf("%d: %s, want 6: %s", len(got), said, want)
	}
	for _, p := range got {
		values := 1
		if p[1] == "a(st)" { // as many pairs as it says
			pairs, _ := strconv.Atoi(p[2])
			values += 2 * pairs
		}
		if len(p) != 2+values {
			t.Errorf("%q: %d values, want %d", p, len(p)-2, values)
		}
	}
	if got := escaped("a-b.c_d"); got != `a\x2db.c_d` {
		t.Errorf("a unit's name has %q", got)
	}
}

// hostWith is a tree of files of a host.
func hostWith(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const (
	mounted = "24 1 0:21 / /proc rw - proc proc rw\n29 25 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n"
	hybrid  = "30 29 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n" +
		"31 29 0:28 / /sys/fs/cgroup/unified rw shared:5 - cgroup2 cgroup2 rw\n"
)

// TestFind: where groups can be made, and what is missing where they cannot.
func TestFind(t *testing.T) {
	mine := map[string]string{
		"proc/self/mountinfo": mounted, "proc/self/cgroup": "0::/mine\n", "sys/fs/cgroup/mine/cgroup.type": "domain\n",
		"sys/fs/cgroup/mine/cgroup.controllers": "cpu io memory pids\n",
	}
	with := func(more map[string]string) map[string]string {
		files := map[string]string{}
		for _, m := range []map[string]string{mine, more} {
			for name, text := range m {
				files[name] = text
			}
		}
		return files
	}
	for name, tt := range map[string]struct {
		files     map[string]string
		want, why string
		lacks     string
	}{
		"a container": {mine, "a control group below /mine", "", ""},
		"its second VM": {
			with(map[string]string{"proc/self/cgroup": "1:name=x:/y\n0::/mine/vmlatch\n"}),
			"a control group below /mine", "", "",
		},
		"version 1": {
			with(map[string]string{"proc/self/mountinfo": "24 1 0:21 / /proc rw - proc proc rw\n"}),
			"", "no control groups of version 2", "",
		},
		"both, and version 1 has the controllers": {
			with(map[string]string{
				"proc/self/mountinfo": hybrid, "sys/fs/cgroup/unified/mine/x": "",
				"sys/fs/cgroup/unified/mine/cgroup.controllers": "hugetlb\n",
			}), "a control group below /mine", "", "no controller for cpu, io, memory, pids here",
		},
		"a container with a shell": {
			with(map[string]string{"sys/fs/cgroup/mine/cgroup.procs": "1\n7\n"}),
			"a control group below /mine", "", "has other processes, such as 1",
		},
		"a container whose groups have the controllers": {
			with(map[string]string{
				"sys/fs/cgroup/mine/cgroup.procs":           "1\n",
				"sys/fs/cgroup/mine/cgroup.subtree_control": "cpu io memory pids\n",
			}), "a control group below /mine", "", "",
		},
		"a service": {
			with(map[string]string{
				"run/systemd/system/x": "", "proc/self/cgroup": "0::/system.slice/vmlatch@a.service\n",
			}), "", "its unit sets", "",
		},
		"nothing known": {with(map[string]string{"proc/self/cgroup": "1:name=x:/\n"}), "", "cannot be read", ""},
	} {
		t.Run(name, func(t *testing.T) {
			p, why := Find(hostWith(t, tt.files))
			if (p == nil) != (tt.why != "") || !strings.Contains(why, tt.why) {
				t.Fatalf("%v, %q, want %q", p, why, tt.why)
			}
			if p == nil {
				return
			}
			if got := p.String(); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
			if got := p.Lacks(&all); (got == "") != (tt.lacks == "") || !strings.Contains(got, tt.lacks) {
				t.Errorf("it lacks %q, want %q", got, tt.lacks)
			}
		})
	}
}

// TestRemoveIsCareful: only groups that were made for VMs are removed.
func TestRemoveIsCareful(t *testing.T) {
	dir := t.TempDir()
	for name, stays := range map[string]bool{"vmlatch-a": false, "other": true, "vmlatch-a.scope": true} {
		path := filepath.Join(dir, name)
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
		Remove(path)
		if _, err := os.Stat(path); (err == nil) != stays {
			t.Errorf("%s: %v", name, err)
		}
	}
	Remove("")
}

// TestEndsWithSession: a scope of a user's own systemd ends with the session, unless the user
// lingers.
func TestEndsWithSession(t *testing.T) {
	u, err := user.Current()
	if err != nil {
		t.Skip(err)
	}
	root := hostWith(t, nil)
	p := &Place{root: root, scope: true, user: true}
	if !p.EndsWithSession() {
		t.Error("a user who does not linger: the scope stays")
	}
	if (&Place{root: root, scope: true}).EndsWithSession() || (&Place{root: root, user: true}).EndsWithSession() {
		t.Error("what is not of the user's systemd ends with it")
	}
	p.root = hostWith(t, map[string]string{"var/lib/systemd/linger/" + u.Username: ""})
	if p.EndsWithSession() {
		t.Error("a user who lingers: the scope ends")
	}
}
