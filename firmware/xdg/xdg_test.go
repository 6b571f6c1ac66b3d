package xdg

import "testing"

func TestStateDir(t *testing.T) {
	for _, c := range []struct{ state, home, want string }{
		{"/state", "/home/a", "/state"},
		{"", "/home/a", "/home/a/.local/state"},
		{"relative", "/home/a", "/home/a/.local/state"}, // to be ignored, by the specification
		{"", "", ""},
	} {
		t.Setenv("XDG_STATE_HOME", c.state)
		t.Setenv("HOME", c.home)
		got, err := StateDir()
		if got != c.want || (err != nil) != (c.want == "") {
			t.Errorf("XDG_STATE_HOME=%s HOME=%s: %q, %v, want %q", c.state, c.home, got, err, c.want)
		}
	}
}
