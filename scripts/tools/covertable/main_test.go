package main

import (
	"strings"
	"testing"
)

func profileOf(t *testing.T, lines ...string) profile {
	t.Helper()
	text := "mode: set\n"
	for _, l := range lines {
		text += module + l + "\n"
	}
	p, err := parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestTable(t *testing.T) {
	unit := profileOf(t, "qmp/a.go:1.1,2.2 8 1", "qmp/a.go:3.1,4.2 2 0", "launcher/start.go:1.1,2.2 1 1",
		"cmd/vmlatch/main.go:1.1,2.2 4 0")
	programs := profileOf(t, "qmp/a.go:3.1,4.2 2 7", "cmd/vmlatch/main.go:1.1,2.2 4 1",
		"cmd/vmlatch/main.go:1.1,2.2 4 0")
	for name, c := range map[string]struct {
		programs profile
		missed   int
		lines    []string
	}{
		"both": {programs, 1, []string{
			"cmd/vmlatch 0.0% 100.0% 100.0% 85%",
			"launcher/start.go 100.0% 0.0% 100.0% 90%",
			"qmp 80.0% 20.0% 100.0% 85% missed",
		}},
		"unit alone": {profile{}, 1, []string{"cmd/vmlatch 0.0% 0.0% 0.0%"}},
	} {
		t.Run(name, func(t *testing.T) {
			var w strings.Builder
			missed := table(&w, unit, c.programs)
			var got []string
			for line := range strings.Lines(w.String()) {
				got = append(got, strings.Join(strings.Fields(line), " "))
			}
			if missed != c.missed {
				t.Errorf("%d goals missed, want %d", missed, c.missed)
			}
			for _, want := range c.lines {
				if !strings.Contains("\n"+strings.Join(got, "\n")+"\n", "\n"+want+"\n") {
					t.Errorf("table\n%s\nhas no line %q", strings.Join(got, "\n"), want)
				}
			}
		})
	}
	if _, err := parse(strings.NewReader("x.go:1.1,2.2 one\n")); err == nil {
		t.Error("a malformed line is taken, want an error")
	}
}
