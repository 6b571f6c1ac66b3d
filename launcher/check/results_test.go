package check_test

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmlatch/vmlatch/launcher/check"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// result is a check's, of a severity and a stage.
func result(id string, severity tee.Severity, stage tee.Stage, verdict tee.Verdict) check.Result {
	c := tee.Check{ID: id, Severity: severity, Stage: stage, Cause: "cause of " + id, Fix: "fix of " + id}
	return check.Result{Check: c, Verdict: verdict}
}

func TestWhatAResultMeans(t *testing.T) {
	for _, severity := range []tee.Severity{tee.Refuse, tee.Warn, tee.Default} {
		for _, verdict := range []tee.Verdict{tee.OK, tee.Failed, tee.Unknown, tee.NotApplicable} {
			r := result("x", severity, tee.SpecStage, verdict)
			warns := verdict == tee.Failed && severity == tee.Warn
			refuses := verdict == tee.Failed && severity != tee.Warn
			if r.Refuses() != refuses || r.Warns() != warns {
				t.Errorf("%s of %s: refuses %t, warns %t, want %t and %t", verdict, severity, r.Refuses(),
					r.Warns(), refuses, warns)
			}
		}
	}
	for _, c := range []struct {
		stage          tee.Stage
		ofSpec, ofHost bool
		want           bool
	}{
		{tee.SpecStage, false, false, false},
		{tee.HostStage, false, false, true},
		{tee.HostStage, true, false, false},
		{tee.PlanStage, false, false, false},
		{tee.PlanStage, false, true, true},
	} {
		r := check.Result{Check: tee.Check{Stage: c.stage, OfSpec: c.ofSpec, OfHost: c.ofHost}}
		if got := r.IsHost(); got != c.want {
			t.Errorf("%+v is about the host: %t, want %t", c, got, c.want)
		}
	}
}

// TestErrorOfResults: one error for all that refuse, of the kind that they have in
// common.
func TestErrorOfResults(t *testing.T) {
	spec := result("s", tee.Refuse, tee.SpecStage, tee.Failed)
	ofHost := result("h", tee.Default, tee.HostStage, tee.Failed)
	other := result("i", tee.Refuse, tee.HostStage, tee.Failed)
	other.Detail = "5 of 7"
	name := result(check.NameFree, tee.Refuse, tee.PlanStage, tee.Failed)
	fine := []check.Result{
		result("a", tee.Refuse, tee.SpecStage, tee.OK), result("b", tee.Warn, tee.SpecStage, tee.Failed),
		result(
			"c",
			tee.Refuse,
			tee.HostStage,
			tee.Unknown,
		), result("d", tee.Refuse, tee.PlanStage, tee.NotApplicable),
	}
	const all = "\n\"vmlatch check FILE\" shows all checks"
	for title, c := range map[string]struct {
		results []check.Result
		want    *fault.Error
		text    string
	}{
		"none":         {nil, nil, ""},
		"none refuses": {fine, nil, ""},
		"the spec": {
			[]check.Result{spec},
			&fault.Error{Kind: fault.Spec, Check: "s", Fix: "s: fix of s" + all},
			"check s: cause of s",
		},
		"the host": {
			[]check.Result{other},
			&fault.Error{Kind: fault.Host, Check: "i", Fix: "i: fix of i" + all},
			"check i: cause of i (5 of 7)",
		},
		"several": {
			[]check.Result{ofHost, other},
			&fault.Error{Kind: fault.Host, Check: "h", Fix: "h: fix of h\ni: fix of i" + all},
			"check h: cause of h; 1 more",
		},
		"both": {
			[]check.Result{ofHost, spec, other},
			&fault.Error{Kind: fault.Spec, Check: "h", Fix: "h: fix of h\ns: fix of s\ni: fix of i" + all},
			"check h: cause of h; 2 more",
		},
		"the name": {
			[]check.Result{name},
			&fault.Error{Kind: fault.NameTaken, Check: "name-free", Fix: "name-free: fix of name-free" + all},
			"check name-free: cause of name-free",
		},
		"name and host": {
			[]check.Result{name, ofHost},
			&fault.Error{Kind: fault.Spec, Check: "name-free", Fix: "name-free: fix of name-free\nh: fix of h" + all},
			"check name-free: cause of name-free; 1 more",
		},
	} {
		err := check.Error("vm.toml", slices.Concat(fine, c.results))
		if c.want == nil {
			if err != nil {
				t.Errorf("%s: %v, want no error", title, err)
			}
			continue
		}
		got := fault.As(err)
		if got == nil {
			t.Errorf("%s: %v, want an error of the launcher", title, err)
			continue
		}
		if want := "vm.toml: " + c.text; got.Kind != fault.Host && err.Error() != want ||
			!strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %q, want %q", title, err, want)
		}
		if got.Kind != c.want.Kind || got.Check != c.want.Check || got.Fix != c.want.Fix || got.File != "vm.toml" {
			t.Errorf("%s: %+v, want %+v", title, got, c.want)
		}
	}
}

// TestErrorOfASpec: of the first check that refuses, at the place of its key.
func TestErrorOfASpec(t *testing.T) {
	g, err := guestOf("machine = 'pc'\n" + testhost.Specs()["sev"])
	if err != nil {
		t.Fatal(err)
	}
	refusing := func(detail string) []check.Result {
		a, b := result("a", tee.Warn, tee.SpecStage, tee.Failed), result("b", tee.Refuse, tee.SpecStage, tee.Failed)
		b.Key, b.Detail = "machine", detail
		return []check.Result{a, b, result("c", tee.Refuse, tee.SpecStage, tee.Failed)}
	}
	for detail, want := range map[string]string{
		"": "vm.toml:1:1: machine: cause of b", "pc": "vm.toml:1:1: machine: pc: cause of b",
		"pc does not do": "vm.toml:1:1: machine: pc does not do",
	} {
		err := check.SpecError(g, refusing(detail))
		if e := fault.As(err); e == nil || err.Error() != want || e.Check != "b" || e.Fix != "fix of b" ||
			e.Kind != fault.Spec {
			t.Errorf("detail %q: %#v, want %q of check b with its fix", detail, e, want)
		}
	}
	if err := check.SpecError(g, refusing("")[:1]); err != nil {
		t.Errorf("a warning: %v, want no error", err)
	}
	if err := check.SpecError(g, check.Spec(g)); err == nil || !strings.Contains(err.Error(), `machine: "pc": `) {
		t.Errorf("a machine of type pc: %v, want it refused", err)
	}
}

func guestOf(text string) (*tee.Guest, error) {
	s, err := tee.Parse([]byte(text), "vm.toml", "/specs")
	if err != nil {
		return nil, err
	}
	return s.For(s.Asked()[0])
}

// TestResultOfAnError: an error that comes before there is a plan is shown as a check.
func TestResultOfAnError(t *testing.T) {
	cause := errors.New("it is so")
	known := check.Table()[0]
	for name, c := range map[string]struct {
		err       error
		id, fix   string
		detail    string
		stage     tee.Stage
		not, fits bool
	}{
		"no error":        {err: nil, not: true},
		"of another type": {err: fs.ErrNotExist, not: true},
		"of another kind": {err: &fault.Error{Kind: fault.Failure, Err: cause}, not: true},
		"a name":          {err: &fault.Error{Kind: fault.NameTaken, Err: cause}, not: true},
		"a spec's": {
			err: fmt.Errorf("x: %w", &fault.Error{Kind: fault.Spec, File: "f", Key: "k", Err: cause}),
			id:  "spec", fix: `"vmlatch help spec"`, detail: "f: k: it is so",
		},
		"a host's": {
			err: &fault.Error{Kind: fault.Host, File: "f", Op: "fly", Err: cause},
			id:  "host", fix: `"vmlatch host"`, detail: "it is so", stage: tee.HostStage,
		},
		"a spec's, with a fix": {
			err: &fault.Error{Kind: fault.Spec, Err: cause, Fix: "do so"}, id: "spec", fix: "do so", detail: "it is so",
		},
		"a check's": {
			err: &fault.Error{Kind: fault.Spec, Err: cause, Check: known.ID},
			id:  known.ID, fix: known.Fix, detail: "it is so",
		},
		"a check's, with a fix": {
			err: &fault.Error{Kind: fault.Host, Err: cause, Check: "qemu-object", Fix: "do so"},
			id:  "qemu-object", fix: "do so", detail: "it is so", stage: tee.HostStage,
		},
		"a file's": {
			err: &fault.Error{Kind: fault.Spec, Err: cause, Check: check.FilesReadable, Fix: "another fix"},
			id:  check.FilesReadable, fix: fault.FixPaths, detail: "it is so", stage: tee.PlanStage,
		},
		"a choice's": {
			err: &fault.Error{Kind: fault.Host, Err: cause, Check: check.Technology},
			id:  check.Technology, fix: "the reasons say what each lacks", detail: "it is so", stage: tee.HostStage,
		},
		"of an unknown check": {
			err: &fault.Error{Kind: fault.Spec, Err: cause, Check: "unheard-of"},
			id:  "spec", fix: "help spec", detail: "it is so",
		},
	} {
		r, ok := check.Of(c.err)
		if ok == c.not {
			t.Errorf("%s: is a result: %t, want %t", name, ok, !c.not)
			continue
		}
		if c.not {
			if r.ID != "" {
				t.Errorf("%s: %+v, want none", name, r)
			}
			continue
		}
		if r.ID != c.id || !strings.Contains(r.Fix, c.fix) || r.Detail != c.detail || r.Stage != c.stage ||
			!r.Refuses() {
			t.Errorf("%s: %+v, want a refusal by %s of stage %d with %q and fix %q", name, r, c.id, c.stage,
				c.detail, c.fix)
		}
		if r.Cause == "" || r.Source == "" {
			t.Errorf("%s: cause %q, source %q, want both", name, r.Cause, r.Source)
		}
	}
}

func TestOnlyAndExcept(t *testing.T) {
	a, b := result("a", tee.Refuse, tee.SpecStage, tee.Failed), result("b", tee.Refuse, tee.SpecStage, tee.Failed)
	warning := result("w", tee.Warn, tee.SpecStage, tee.Failed)
	for _, c := range []struct {
		results []check.Result
		want    bool
	}{
		{nil, false},
		{[]check.Result{a}, true},
		{[]check.Result{b}, false},
		{[]check.Result{a, b}, false},
		{[]check.Result{warning, a}, true},
		{[]check.Result{warning}, false},
	} {
		if got := check.Only(c.results, "a"); got != c.want {
			t.Errorf("a alone refuses of %v: %t, want %t", failedIDs(c.results), got, c.want)
		}
	}
	list := []check.Result{a, b, warning}
	for want, ids := range map[string][]string{"a b w": nil, "b": {"a", "w"}, "b w": {"a", "x"}, "": {"w", "b", "a"}} {
		if got := strings.Join(failedIDs(check.Except(list, ids...)), " "); got != want {
			t.Errorf("without %q: %q, want %q", ids, got, want)
		}
	}
	if got := failedIDs(list); !slices.Equal(got, []string{"a", "b", "w"}) {
		t.Errorf("the list became %q, want it unchanged", got)
	}
}

// TestStages: each stage makes its checks and those before it.
func TestStages(t *testing.T) {
	g, err := guestOf(testhost.Specs()["tdx"])
	if err != nil {
		t.Fatal(err)
	}
	count := func(last tee.Stage) (ids []string) {
		for _, c := range check.Table() {
			if c.Stage <= last {
				ids = append(ids, c.ID)
			}
		}
		return ids
	}
	ids := func(results []check.Result) (ids []string) {
		for _, r := range results {
			ids = append(ids, r.ID)
		}
		return ids
	}
	if diff := cmp.Diff(count(tee.SpecStage), ids(check.Spec(g))); diff != "" {
		t.Errorf("of the spec (-want +got):\n%s", diff)
	}
	facts := testhost.Facts()
	if diff := cmp.Diff(count(tee.HostStage), ids(check.Host(g, facts))); diff != "" {
		t.Errorf("of the host (-want +got):\n%s", diff)
	}
	results, _ := checkCase{tech: "tdx"}.look(t)
	if diff := cmp.Diff(count(tee.PlanStage), ids(results)); diff != "" {
		t.Errorf("of the plan (-want +got):\n%s", diff)
	}
}
