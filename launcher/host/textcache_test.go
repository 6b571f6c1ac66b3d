package host

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestText: a text is worked out once for each content of a file.
func TestText(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "image")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	times := 0
	work := func() (string, error) {
		times++
		b, err := os.ReadFile(file)
		return "about " + string(b), err
	}
	c := Cache{Dir: filepath.Join(dir, "cache")}
	write("one")
	for range 3 {
		if got, err := c.Text("kind", file, work); got != "about one" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	}
	if times != 1 {
		t.Errorf("it was worked out %d times, want once", times)
	}
	if got, _ := c.Text("other", file, func() (string, error) { return "another", nil }); got != "another" {
		t.Errorf("another kind gives %q", got)
	}
	write("two, which is longer")
	if got, err := c.Text("kind", file, work); got != "about two, which is longer" || err != nil || times != 2 {
		t.Errorf("%q, %v, worked out %d times", got, err, times)
	}
	fails := errors.New("no text today")
	write("three")
	if _, err := c.Text("kind", file, func() (string, error) { return "", fails }); !errors.Is(err, fails) {
		t.Errorf("%v, want %v", err, fails)
	}
	if got, err := (Cache{}).Text("kind", file, work); got != "about three" || err != nil {
		t.Errorf("without a cache: %q, %v", got, err)
	}
	entries, _ := filepath.Glob(filepath.Join(c.Dir, "kind-*.json"))
	for _, e := range entries {
		if err := os.WriteFile(e, []byte("damaged"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := c.Text("kind", file, work); got != "about three" || err != nil {
		t.Errorf("from a damaged cache: %q, %v", got, err)
	}
	if _, err := c.Text("kind", filepath.Join(dir, "missing"), work); err == nil {
		t.Error("a text about a file that is not there")
	}
}
