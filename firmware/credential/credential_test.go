package credential

import (
	"strings"
	"testing"
)

func TestPath(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", "/run/credentials/x")
	for text, want := range map[string]string{ // "!" and a part of the error
		"guest.session": "guest.session", "": "", "/a/b": "/a/b",
		"credential:session": "/run/credentials/x/session",
		"credential:":        "!no credential", "credential:..": "!no credential", "credential:.": "!no credential",
		"credential:a/b": "!no credential", "credential:a\x00": "!no credential",
	} {
		got, err := Path(text)
		part, fails := strings.CutPrefix(want, "!")
		if fails != (err != nil) || fails && !strings.Contains(err.Error(), part) || !fails && got != want {
			t.Errorf("%q: %q, %v, want %q", text, got, err, want)
		}
	}
	for _, dir := range []string{"", "relative"} {
		t.Setenv("CREDENTIALS_DIRECTORY", dir)
		if _, err := Path("credential:session"); err == nil {
			t.Errorf("directory %q: no error", dir)
		}
	}
}
