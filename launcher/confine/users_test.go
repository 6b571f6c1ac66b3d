package confine

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadUsers(t *testing.T) {
	for name, c := range map[string]struct{ uids, gids, want string }{
		"a range":           {"vmlatch:200000:4096\n", "vmlatch:200000:4096\n", "200000+4096"},
		"next to others":    {"a:100000:65536\nvmlatch:200000:10\n", "vmlatch:200000:10\na:0:1\n", "200000+10"},
		"none":              {"a:100000:65536\n", "", ErrNoUsers.Error()},
		"of groups alone":   {"", "vmlatch:200000:4096\n", "differ"},
		"two ranges differ": {"vmlatch:200000:4096\n", "vmlatch:300000:4096\n", "differ"},
		"overlap":           {"vmlatch:200000:4096\nb:204095:1\n", "vmlatch:200000:4096\n", "another's"},
		"of people":         {"vmlatch:1000:100\n", "vmlatch:1000:100\n", "from 65536 on"},
		"no number":         {"vmlatch:x:100\n", "vmlatch:x:100\n", "from 65536 on"},
		"none of them":      {"vmlatch:200000:0\n", "vmlatch:200000:0\n", "from 65536 on"},
		"beyond all ids":    {"vmlatch:200000:99999999999\n", "vmlatch:200000:1\n", "from 65536 on"},
		"two lines":         {"vmlatch:200000:1\nvmlatch:300000:1\n", "vmlatch:200000:1\n", "one line"},
	} {
		root := t.TempDir()
		if err := os.Mkdir(filepath.Join(root, "etc"), 0o700); err != nil {
			t.Fatal(err)
		}
		for file, text := range map[string]string{"subuid": c.uids, "subgid": c.gids} {
			if err := os.WriteFile(filepath.Join(root, "etc", file), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		u, err := ReadUsers(root)
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			got = fmt.Sprintf("%d+%d", u.First, u.Count)
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if _, err := ReadUsers(t.TempDir()); err == nil {
		t.Error("a host without the files has ids")
	}
}
