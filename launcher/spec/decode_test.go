package spec_test

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/bytesize"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/spec"
)

// written is a spec with a value of every kind that specs have.
type written struct {
	Name    string
	Memory  bytesize.Size
	CPUs    int
	Words   []string
	Wait    spec.Duration
	Disks   []disk
	Limits  limits
	Devices []map[string]any
	Policy  map[string][]string
	Any     any
}

type disk struct {
	Image    string  `toml:"image"`
	Format   string  `toml:"format"`
	ReadOnly *bool   `toml:"read-only"`
	Limits   *limits `toml:"limits"`
}

type limits struct {
	Rate  int           `toml:"rate"`
	Burst bytesize.Size `toml:"burst"`
	NoKey string        // not for users
}

func (w *written) tables() spec.Tables {
	return spec.Tables{
		"name": &w.Name, "memory": &w.Memory, "cpus": &w.CPUs, "words": &w.Words, "wait": &w.Wait,
		"disk": &w.Disks, "limits": &w.Limits, "device": &w.Devices, "policy": &w.Policy, "any": &w.Any,
	}
}

// parse reads a text as f.toml.
func parse(text string) (w written, f *spec.File, err error) {
	f, err = spec.Parse([]byte(text), "f.toml", "/specs", w.tables())
	return w, f, err
}

func TestEveryKindOfValueIsRead(t *testing.T) {
	yes := true
	for text, want := range map[string]written{
		"":                         {},
		"# a comment\n\n":          {},
		`name = "a"`:               {Name: "a"},
		`"name" = 'a'`:             {Name: "a"},
		`memory = "2GiB"`:          {Memory: 2 << 30},
		"cpus = 4":                 {CPUs: 4},
		`words = ["a", "b"]`:       {Words: []string{"a", "b"}},
		`wait = "1m30s"`:           {Wait: spec.Duration(90 * time.Second)},
		"[limits]\nrate = 3":       {Limits: limits{Rate: 3}},
		"limits.rate = 3":          {Limits: limits{Rate: 3}},
		"limits = { rate = 3 }":    {Limits: limits{Rate: 3}},
		`limits = {burst="1KiB"}`:  {Limits: limits{Burst: 1 << 10}},
		"[policy]\nsev = [\"x\"]":  {Policy: map[string][]string{"sev": {"x"}}},
		"any = 1":                  {Any: int64(1)},
		"any = 'a'":                {Any: "a"},
		"any = ['a']":              {Any: []any{"a"}},
		"device = [{a = 1, B=2}]":  {Devices: []map[string]any{{"a": int64(1), "B": int64(2)}}},
		"[[device]]\na = {b = 1}":  {Devices: []map[string]any{{"a": map[string]any{"b": int64(1)}}}},
		`disk = [{ image = "x" }]`: {Disks: []disk{{Image: "x"}}},
		"[[disk]]\nimage = 'x'\nread-only = true\n[[disk]]\nimage = 'y'\n[disk.limits]\nrate = 1": {
			Disks: []disk{{Image: "x", ReadOnly: &yes}, {Image: "y", Limits: &limits{Rate: 1}}},
		},
	} {
		got, _, err := parse(text)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%q: %v (-want +got):\n%s", text, err, diff)
		}
	}
}

func TestValuesThatAreThereAlreadyAreDefaults(t *testing.T) {
	w := written{Name: "default", CPUs: 2, Limits: limits{Rate: 7, Burst: 9}}
	if _, err := spec.Parse([]byte("cpus = 4\nlimits.rate = 8"), "f.toml", "/", w.tables()); err != nil {
		t.Fatal(err)
	}
	want := written{Name: "default", CPUs: 4, Limits: limits{Rate: 8, Burst: 9}}
	if diff := cmp.Diff(want, w); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAnUnreadableFileChangesNothing(t *testing.T) {
	w := written{Name: "default", CPUs: 2}
	want := w
	if _, err := spec.Parse([]byte("cpus = 4\nlimits.rte = 8"), "f.toml", "/", w.tables()); err == nil {
		t.Error("no error, want one about limits.rte")
	}
	if diff := cmp.Diff(want, w); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestErrorsNameThePlaceTheKeyAndTheCause: the error as users see it, and the key that
// it suggests.
func TestErrorsNameThePlaceTheKeyAndTheCause(t *testing.T) {
	for _, c := range []struct{ name, text, want, near string }{
		{"an unknown key", "nme = 'a'", "1:1: nme: unknown key", "name"},
		{"one behind spaces", "\n\t nme = 'a'", "2:3: nme: unknown key", "name"},
		{"one that resembles nothing", "zzzz = 1", "1:1: zzzz: unknown key", ""},
		{"one of the wrong type, too", "nme = 1", "1:1: nme: unknown key", "name"},
		{"another case", "Name = 'a'", "1:1: Name: unknown key", "name"},
		{"another case, next to the right one", "name = 'a'\nNAME = 'b'", "2:1: NAME: unknown key", "name"},
		{"another case of a table", "[Limits]", "1:2: Limits: unknown key", "limits"},
		{"another case in a table", "[limits]\nRate = 1", "2:1: limits.Rate: unknown key", "rate"},
		{"in an array of tables", "[[disk]]\n[[disk]]\nIMAGE = 'x'", "3:1: disk.IMAGE: unknown key", "image"},
		{"a dotted key", "limits.rte = 1", "1:8: limits.rte: unknown key", "rate"},
		{"a quoted key", `limits."rte" = 1`, "1:8: limits.rte: unknown key", "rate"},
		{"a key with a dot in it", `"limits.rate" = 1`, "1:1: limits.rate: unknown key", "limits"},
		{"in an inline table", "limits = { rate = 1, brst = 2 }", "1:22: limits.brst: unknown key", "burst"},
		{"in a list of inline tables", "disk = [{image='x'},{formt='y'}]", "1:22: disk.formt: unknown key", "format"},
		{
			"in a table of an array's table", "[[disk]]\nimage='x'\n[disk.limits]\nrates=1",
			"4:1: disk.limits.rates: unknown key", "rate",
		},
		{
			"in an inline table of an array's table", "[[disk]]\n[[disk]]\nlimits = { rate = 1, bust = 2 }",
			"3:22: disk.limits.bust: unknown key", "burst",
		},
		{"the first part of an unknown key", "[a.b.c]\nd = 1", "1:2: a: unknown key", ""},
		{"the first of several", "aaaa = 1\nbbbb = 1", "1:1: aaaa: unknown key", ""},
		{"a field that has no key", "limits.NoKey = 'x'", "1:8: limits.NoKey: unknown key", ""},

		{"a number for text", "name = 5", "1:8: name: must be text in quotes, not of type integer", ""},
		{"a list for text", "name = [1]", "1:8: name: must be text in quotes, not of type array", ""},
		{"a table for text", "name = {a=1}", "1:8: name: must be text in quotes, not of type inline table", ""},
		{"a date for text", "name = 2026-01-01", "1:8: name: must be text in quotes, not of type local date", ""},
		{"text for a number", "cpus = 'x'", "1:8: cpus: must be a number, not of type string", ""},
		{"a fraction for a number", "cpus = 1.5", "1:8: cpus: must be a number, not of type float", ""},
		{"text for a list", "words = 'x'", "1:9: words: must be a list of strings, not of type string", ""},
		{"a list of numbers", "words = ['a', 1]", "1:15: words: must be text in quotes, not of type integer", ""},
		{
			"text for a list in a table", "[policy]\nsev='x'",
			"2:5: policy.sev: must be a list of strings, not of type string", "",
		},
		{"a number for a table", "limits = 5", "1:10: limits: must be a table, not of type integer", ""},
		{"a number for tables", "disk = [1]", "1:9: disk: must be a table, not of type integer", ""},
		{
			"a number for yes or no", "[[disk]]\nread-only = 1",
			"2:13: disk.read-only: must be true or false, not of type integer", "",
		},
		{"a table for a number", "limits.rate.x = 1", "1:13: limits.rate.x: must be a number, not of type table", ""},

		{"a size without quotes", "memory = 5", `1:10: memory: must be a size in quotes, such as "2GiB", not 5`, ""},
		{"a size below 0", "memory = -5", `1:10: memory: must be a size in quotes, such as "2GiB", not -5`, ""},
		{"a size as a fraction", "memory = 1.5", `1:10: memory: must be a size in quotes, such as "2GiB", not 1.5`, ""},
		{
			"a list for a size", "memory = []",
			`1:10: memory: must be a size in quotes, such as "2GiB", not of type array`, "",
		},
		{
			"a size without quotes in a list of tables", "disk = [{limits = {burst = 7}}]",
			`1:28: disk.limits.burst: must be a size in quotes, such as "2GiB", not 7`, "",
		},
		{"a size without a unit", `memory = "5"`, `1:10: memory: size "5": has no unit; write 5MiB or 5GiB`, ""},
		{
			"a duration without quotes", "wait = 300",
			`1:8: wait: must be a duration in quotes, such as "5m", not 300`, "",
		},
		{"a duration of yes", "wait = true", `1:8: wait: must be a duration in quotes, such as "5m", not true`, ""},
		{
			"a duration that is none", "wait = '5'",
			`1:8: wait: duration "5": must be a number with a unit, such as "30s" or "5m"`, "",
		},

		{"no value", "name =", "1:6: expected value, not end of input", ""},
		{"no value further down", "cpus = 1\nname =", "2:6: expected value, not end of input", ""},
		{"a key that stands twice", "name = 'a'\nname = 'b'", "2:1: name: key name is already defined", ""},
		{"a table that stands twice", "[limits]\n[limits]", "2:2: limits: table limits already exists", ""},
		{"more behind a value", "name = 'x' y", "1:12: expected newline but got U+0079 'y'", ""},
		{
			"a number that is too large", "cpus = 99999999999999999999",
			"1:8: cpus: decimal number is too large to fit in a 64-bit signed integer", "",
		},
	} {
		_, _, err := parse(c.text)
		e := fault.As(err)
		if e == nil {
			t.Errorf("%s: %v, want an error of the launcher", c.name, err)
			continue
		}
		if got, want := err.Error(), "f.toml:"+c.want; got != want || e.Kind != fault.Spec {
			t.Errorf("%s:\n got %q of kind %d\nwant %q of kind %d", c.name, got, e.Kind, want, fault.Spec)
		}
		want := ""
		if c.near != "" {
			want = fmt.Sprintf("did you mean %q?", c.near)
		}
		if e.Fix != want {
			t.Errorf("%s: fix %q, want %q", c.name, e.Fix, want)
		}
	}
}

func TestKeysInFreeTablesAreTheUsersOwn(t *testing.T) {
	w, f, err := parse("[[device]]\nDriver = 'x'\n[device.nested]\nAnything = 1\n[policy]\nwhatever = []")
	if err != nil {
		t.Fatal(err)
	}
	want := []map[string]any{{"Driver": "x", "nested": map[string]any{"Anything": int64(1)}}}
	if diff := cmp.Diff(want, w.Devices); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !f.Has("device.nested.Anything") || !f.Has("policy.whatever") {
		t.Error("the file does not have the keys of its free tables, want it to")
	}
}

// TestHugeFilesCostLittle: a file of a mebibyte must not take minutes or gigabytes, for
// the demands of a disk image come from its maker. Without bounds some take minutes;
// the limit leaves room for the race detector.
func TestHugeFilesCostLittle(t *testing.T) {
	many := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	long := strings.Repeat("a", 1000)
	for name, c := range map[string]struct{ text, want string }{
		"60,000 unknown keys": {many(60_000, "k%d = 1\n"), "f.toml:1:1: k0: unknown key"},
		"60,000 free keys": {
			"[[device]]\n" + many(60_000, "k%d = 1\n"), "f.toml:5001:1: has more than 5000 keys",
		},
		"60,000 in one table": {"device = [{" + many(60_000, "k%d = 1,") + "z = 1}]", "has more than 5000 keys"},
		"60,000 tables":       {many(60_000, "[policy.t%d]\n"), "has more than 5000 keys"},
		"4,999 free keys":     {"[[device]]\n" + many(4_999, "k%d = 1\n"), ""},
		"5,000 free keys":     {"[[device]]\n" + many(5_000, "k%d = 1\n"), "has more than 5000 keys"},
		"200,000 parts": {
			"[[device]]\n" + strings.Repeat("a.", 200_000) + "a = 1", "f.toml:2:993: a key with",
		},
		"100,000 parts, often": {
			"[" + strings.Repeat("policy.", 100_000) + "a]\n" + many(50_000, "k%d=1\n"), "a key with",
		},
		"nested tables": {
			"any = " + strings.Repeat("{a=", 9_000) + "1" + strings.Repeat("}", 9_000), "a key with",
		},
		"nested lists":          {"any = " + strings.Repeat("[", 9_000) + strings.Repeat("]", 9_000), ""},
		"lists nested too deep": {"any = " + strings.Repeat("[", 500_000), "are nested more than"},
		"a key of 995 bytes":    {"[policy]\n" + long[:992] + " = []", ""},
		"a key of 1,001 bytes":  {"[policy]\n" + long[:993] + " = []", "f.toml:2:1: a key with"},
		"a value of a mebibyte": {"name = '" + strings.Repeat("a", 1<<20) + "'", ""},
		"an error far below":    {strings.Repeat("\n", 1<<19) + "nme = 1", "f.toml:524289:1: nme: unknown key"},
		"an error far behind":   {strings.Repeat(" ", 1<<19) + "nme = 1", "f.toml:1:524289: nme: unknown key"},
		"an error in a long row": {
			"words = [" + strings.Repeat("'a',", 100_000) + "1]", "f.toml:1:400010: words: must be text",
		},
	} {
		start := processorTime(t)
		_, _, err := parse(c.text)
		if took, most := processorTime(t)-start, 5*time.Second; took > most {
			t.Errorf("%s: took %v, want at most %v", name, took, most)
		}
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: error %.200v, want one with %q", name, err, c.want)
		}
	}
}

// processorTime is the time that this process has used: others that run at the same
// time do not count.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// FuzzParse: whatever a file has, it is read or there is an error whose place lies in
// the file.
func FuzzParse(f *testing.F) {
	f.Add([]byte("name = 'a'\ncpus = 1\n[[disk]]\nimage = \"x\"\nlimits = { rate = 1 }\n"))
	f.Add([]byte("limits.burst = 5\n\"a.b\" = [[{c = 1}]]\n"))
	f.Add([]byte("name = \"\\u00e4\xff\"\r\n[device]\n"))
	f.Add([]byte("any = [1, [2.5, {a.b = 1979-05-27}]]\n[policy]\nx = [\n'a', # b\n]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var w written
		file, err := spec.Parse(b, "f.toml", "/", w.tables())
		if err == nil {
			within(t, b, file.Errorf("name", "x"))
			return
		}
		e := fault.As(err)
		if e == nil || e.Kind != fault.Spec || e.File != "f.toml" {
			t.Fatalf("%v, want an error of the launcher about f.toml", err)
		}
		within(t, b, e)
		if strings.Contains(err.Error(), reflect.TypeFor[written]().PkgPath()) ||
			strings.Contains(err.Error(), "Table0") {
			t.Errorf("%v: names a type of Go", err)
		}
	})
}

// within reports an error's place that does not lie in the text.
func within(t *testing.T, text []byte, e *fault.Error) {
	t.Helper()
	if e.Line == 0 {
		return // unknown
	}
	lines := bytes.Split(text, []byte("\n"))
	if e.Line < 1 || e.Line > len(lines) {
		t.Fatalf("%v: line %d of %d", e, e.Line, len(lines))
	}
	if most := len(lines[e.Line-1]) + 1; e.Column < 1 || e.Column > most {
		t.Fatalf("%v: column %d of %d", e, e.Column, most)
	}
}

// Words of other tools lead to the key that a spec has for them, where it has it.
func TestSynonyms(t *testing.T) {
	for text, want := range map[string]string{
		"vcpus = 2": `did you mean "cpus"?`, "ram = '1GiB'": `did you mean "memory"?`,
		"[[disk]]\npath = 'x'": `did you mean "image"?`, "[limits]\npath = 'x'": "",
	} {
		_, _, err := parse(text)
		if e := fault.As(err); e == nil || e.Fix != want {
			t.Errorf("%q: %v, want the hint %q", text, err, want)
		}
	}
}
