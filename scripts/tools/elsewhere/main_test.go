package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":          "module example.com/m\n\ngo 1.26\n",
		"main.go":         "package main\n\nimport \"fmt\"\n\nfunc main() { fmt.Println(home()) }\n",
		"home_linux.go":   "package main\n\nfunc home() string { return \"/home\" }\n",
		"home_windows.go": "package main\n\nfunc home() int { return missing }\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	for platform, want := range map[string]string{
		"linux/arm64": "", "windows/amd64": "undefined: missing", "darwin/arm64": "undefined: home",
		"plan9": "must be SYSTEM/PROCESSOR",
	} {
		var out bytes.Buffer
		err := check(&out, platform, ".")
		said := out.String()
		if err != nil && !errors.Is(err, errBroken) {
			said += err.Error()
		}
		if (err == nil) != (want == "") || !strings.Contains(said, want) {
			t.Errorf("%s: %v: %s, want %q", platform, err, said, want)
		}
	}
}
