package confine

import (
	"os"
	"path/filepath"
	"testing"
)

func TestNoNamespaces(t *testing.T) {
	const (
		most       = "proc/sys/user/max_user_namespaces"
		debian     = "proc/sys/kernel/unprivileged_userns_clone"
		restricted = "proc/sys/kernel/apparmor_restrict_unprivileged_userns"
		profile    = "proc/self/attr/current"
		kernel     = "proc/self/ns/user"
	)
	for name, c := range map[string]struct {
		files    map[string]string
		can      bool
		rootDoes bool // though others cannot
	}{
		"all":                {map[string]string{kernel: "", most: "96364\n"}, true, true},
		"an old kernel":      {nil, false, false},
		"switched off":       {map[string]string{kernel: "", most: "0\n"}, false, false},
		"Debian's switch":    {map[string]string{kernel: "", debian: "0\n"}, false, true},
		"Debian's switch on": {map[string]string{kernel: "", debian: "1\n"}, true, true},
		"AppArmor":           {map[string]string{kernel: "", restricted: "1\n", profile: "unconfined\n"}, false, true},
		"AppArmor, a profile": {
			map[string]string{kernel: "", restricted: "1\n", profile: "vmlatch (unconfined)\n"}, true, true,
		},
		"AppArmor, allowing": {map[string]string{kernel: "", restricted: "0\n", profile: "unconfined\n"}, true, true},
	} {
		root := t.TempDir()
		for file, text := range c.files {
			file = filepath.Join(root, file)
			if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for uid, want := range map[int]bool{1000: c.can, 0: c.rootDoes} {
			if why := noNamespaces(root, uid); (why == "") != want {
				t.Errorf("%s, user %d: %q", name, uid, why)
			}
		}
	}
}

// TestMissing: a namespace of processes keeps signals in where Landlock cannot.
func TestMissing(t *testing.T) {
	all := []string{User, Mount, IPC, Network}
	for _, c := range []struct {
		host       Host
		namespaces []string
		want       int
	}{
		{Host{Landlock: 6}, all, 0},
		{Host{Landlock: 5}, all, 1},
		{Host{Landlock: 5}, append(all, PID), 0},
		{Host{}, all, 2},
		{Host{}, append(all, PID), 1},
		{Host{Landlock: 6, NoNamespaces: "no"}, nil, 1},
		{Host{Landlock: 5, NoNamespaces: "no"}, nil, 2},
		{Host{NoNamespaces: "no"}, nil, 2},
	} {
		if got := c.host.Missing(c.namespaces); len(got) != c.want {
			t.Errorf("%+v, %v: %q, want %d", c.host, c.namespaces, got, c.want)
		}
	}
}
