package plan_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// guest is a spec's guest before a technology is chosen for it.
func guest(t testing.TB, text string) plan.Guest {
	t.Helper()
	s, err := tee.Parse([]byte(text), "vm.toml", "/specs")
	if err != nil {
		t.Fatal(err)
	}
	return s.Guest()
}

func TestParseOptions(t *testing.T) {
	for _, c := range []struct {
		argv   []string
		values map[string][]string
		flags  map[string]bool
	}{
		{nil, nil, nil},
		{[]string{"qemu"}, nil, nil},
		{[]string{"-S"}, nil, nil}, // the program's name
		{[]string{"qemu", "-S"}, nil, map[string]bool{"-S": true}},
		{
			[]string{"qemu", "-nodefaults", "-no-user-config", "-S", "-no-reboot", "-m", "5"},
			map[string][]string{"-m": {"5"}},
			map[string]bool{"-nodefaults": true, "-no-user-config": true, "-S": true, "-no-reboot": true},
		},
		{
			[]string{"qemu", "-device", "a", "-m", "-S", "-device", "b"}, // a value that looks like a flag
			map[string][]string{"-device": {"a", "b"}, "-m": {"-S"}}, nil,
		},
		{[]string{"qemu", "-m"}, nil, map[string]bool{"-m": true}}, // its value is missing
	} {
		o := plan.ParseOptions(c.argv)
		want := &plan.Options{Values: map[string][]string{}, Flags: map[string]bool{}}
		if c.values != nil {
			want.Values = c.values
		}
		if c.flags != nil {
			want.Flags = c.flags
		}
		if diff := cmp.Diff(want, o); diff != "" {
			t.Errorf("%q (-want +got):\n%s", c.argv, diff)
		}
	}
}

func TestOptionsThatStandOnce(t *testing.T) {
	o := plan.ParseOptions([]string{"qemu", "-m", "1", "-device", "a", "-device", "b", "-machine", "q35,a=b"})
	for name, want := range map[string]string{"-m": "1", "-device": "", "-none": ""} {
		if got := o.One(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if got := o.Machine("a"); got != "b" {
		t.Errorf("property a of the machine is %q, want b", got)
	}
}

func TestProperties(t *testing.T) {
	for value, want := range map[string]map[string]string{
		"":                {"driver": "", "qom-type": ""},
		"q35":             {"driver": "q35", "qom-type": "q35"},
		"q35,a=b,c=":      {"driver": "q35", "qom-type": "q35", "a": "b", "c": ""},
		"q35,a=b,,c,d=e":  {"driver": "q35", "qom-type": "q35", "a": "b,c", "d": "e"},
		"a=b":             {"a": "b"},
		"a=b=c":           {"a": "b=c"},
		"q35,flag":        {"driver": "q35", "qom-type": "q35", "flag": ""},
		"q35,a=1,a=2":     {"driver": "q35", "qom-type": "q35", "a": "2"},
		`{"a":"b,,c"}`:    {"a": "b,,c"},
		`{"a":true}`:      {"a": "on"},
		`{"a":false}`:     {"a": "off"},
		`{"a":5}`:         {"a": "5"},
		`{"a":196919}`:    {"a": "196919"},
		`{"a":268435456}`: {"a": "268435456"}, // not 2.68435456e+08
		`{"a":null}`:      {"a": "<nil>"},
		`{"a":`:           nil,
		`{"a":"b"}x`:      nil,
	} {
		if diff := cmp.Diff(want, plan.Properties(value)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", value, diff)
		}
	}
}

func TestObjectsOfACommandLine(t *testing.T) {
	for name, c := range map[string]struct {
		argv      []string
		objects   []string
		protector string
	}{
		"none": {[]string{"qemu", "-machine", "q35"}, nil, ""},
		"in either form": {
			[]string{"qemu", "-object", "a,id=x", "-object", `{"qom-type":"b","id":"y"}`},
			[]string{"a", "b"},
			"",
		},
		"one that guards": {
			[]string{"qemu", "-machine", "q35,confidential-guest-support=y", "-object", "a,id=x", "-object", "b,id=y"},
			[]string{"a", "b"},
			"b",
		},
		"one that is not there": {
			[]string{"qemu", "-machine", "q35,confidential-guest-support=z", "-object", "a,id=x"}, []string{"a"}, "",
		},
		"one without an id": {[]string{"qemu", "-machine", "q35", "-object", "a"}, []string{"a"}, ""},
	} {
		o := plan.ParseOptions(c.argv)
		var kinds []string
		for _, d := range o.Objects() {
			kinds = append(kinds, d.Kind)
		}
		if diff := cmp.Diff(c.objects, kinds); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if got, ok := o.Protection(); got.Kind != c.protector || ok != (c.protector != "") {
			t.Errorf("%s: guarded by %q, %t, want %q", name, got.Kind, ok, c.protector)
		}
	}
}

// TestEqualInputsGiveEqualPlans, whatever the order of maps.
func TestEqualInputsGiveEqualPlans(t *testing.T) {
	const text = "memory-backend = {share = true, prealloc = true, reserve = true, type = 'memfd'}\n" +
		"device = [{driver = 'a', b = 1, c = 2, d = 3, e = 4}]"
	want := mustPlan(t, text, testhost.Facts()).Argv
	for range 20 {
		if diff := cmp.Diff(want, mustPlan(t, text, testhost.Facts()).Argv); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	}
}

// TestPlansLeaveTheSpecAsItIs: a device without an id gets one in the plan alone.
func TestPlansLeaveTheSpecAsItIs(t *testing.T) {
	g := guest(t, "device = [{driver = 'a'}]")
	p, err := plan.Build(&g, withHelper{}, rundir.Choice{}, testhost.Facts(), testhost.Root())
	if err != nil || len(g.Devices[0]) != 1 {
		t.Errorf("the device became %v in %v, %v, want it without an id", g.Devices[0], p, err)
	}
}
