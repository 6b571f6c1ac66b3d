package main

import (
	"strings"
	"testing"
)

const stream = `{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:7: needs root\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- SKIP: TestA (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:9: got 1, want 2\n"}
{"Action":"RESULT","Package":"p","Test":"TestB"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}
`

func follow(t *testing.T, list, stream string) (out string, ok bool) {
	t.Helper()
	allowed, err := parseReasons(list)
	if err != nil {
		t.Fatal(err)
	}
	var w strings.Builder
	l := newLog(&w, allowed)
	if err := l.read(strings.NewReader(stream)); err != nil {
		t.Fatal(err)
	}
	ok = l.finish()
	return w.String(), ok
}

func TestLog(t *testing.T) {
	pass := strings.Replace(stream, "RESULT", "pass", 1)
	fail := strings.Replace(stream, "RESULT", "fail", 1)
	const list = "# another user cannot be made otherwise\nneeds root$\n"
	for name, c := range map[string]struct {
		list, stream string
		ok           bool
		say          string
	}{
		"listed":      {list, pass, true, "1 passed, 0 failed, 1 skipped\n"},
		"unlisted":    {"", pass, false, "not listed: p TestA: needs root\n"},
		"failed":      {list, fail, false, "b_test.go:9: got 1, want 2\n"},
		"cut off":     {list, pass[:strings.LastIndex(pass[:len(pass)-1], "\n")+1], false, "FAIL\tp\t(did not end)\n"},
		"nothing ran": {list, "", false, "0 passed"},
		"not JSON":    {list, "warning: x\n" + pass, true, "warning: x\n"},
		"build fails": {list, `{"ImportPath":"p","Action":"build-fail"}` + "\n" + pass, false, "FAIL\n"},
	} {
		t.Run(name, func(t *testing.T) {
			out, ok := follow(t, c.list, c.stream)
			if ok != c.ok || !strings.Contains(out, c.say) {
				t.Errorf("ok is %t and the output\n%s\nwant %t and in it %q", ok, out, c.ok, c.say)
			}
		})
	}
}

func TestReasons(t *testing.T) {
	for _, bad := range []string{"x", "# why\nx\n\ny", "# why\n(", "# why\n.*"} {
		if _, err := parseReasons(bad); err == nil {
			t.Errorf("%q is taken for a list, want an error", bad)
		}
	}
}
