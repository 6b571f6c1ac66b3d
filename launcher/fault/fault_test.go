package fault_test

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/vmlatch/vmlatch/launcher/fault"
)

var errCause = errors.New("no such thing")

func TestErrorSaysWhereAndWhat(t *testing.T) {
	for want, e := range map[string]fault.Error{
		"":                             {},
		"no such thing":                {Err: errCause},
		"vm: no such thing":            {Op: "vm", Err: errCause},
		"vm":                           {Op: "vm"},
		"a.toml: no such thing":        {File: "a.toml", Err: errCause},
		"a.toml:3:7: no such thing":    {File: "a.toml", Line: 3, Column: 7, Err: errCause},
		"a.toml:1:1: no such thing":    {File: "a.toml", Line: 1, Column: 1, Err: errCause},
		"a.toml: cpu: no such thing":   {File: "a.toml", Key: "cpu", Err: errCause},
		"cpu: no such thing":           {Line: 3, Column: 7, Key: "cpu", Err: errCause}, // in no file
		"vm (state): no such thing":    {Kind: fault.State, Op: "vm (state)", Err: errCause},
		"this host cannot use KVM":     {Kind: fault.Host, Op: "use KVM"},
		"this host cannot use KVM: no": {Kind: fault.Host, Op: "use KVM", Err: errors.New("no")},
		"full":                         {Kind: fault.Host, Err: errors.New("full")},
		"a.toml:3:7: cpu: vm: no such thing": {
			File: "a.toml", Line: 3, Column: 7, Key: "cpu", Op: "vm", Err: errCause, Fix: "a fix is not in it",
		},
	} {
		if got := e.Error(); got != want {
			t.Errorf("%#v says %q, want %q", e, got, want)
		}
	}
}

func TestErrorIsItsCause(t *testing.T) {
	err := fmt.Errorf("outside: %w", &fault.Error{Err: &fs.PathError{Op: "open", Path: "x", Err: fs.ErrNotExist}})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v is not fs.ErrNotExist, want its cause", err)
	}
	if got := errors.Unwrap(&fault.Error{}); got != nil {
		t.Errorf("an error without a cause unwraps to %v, want nil", got)
	}
}

func TestOnlyHostErrorsAreErrHost(t *testing.T) {
	for kind := fault.Failure; kind <= fault.NameTaken; kind++ {
		err := fmt.Errorf("outside: %w", &fault.Error{Kind: kind, Op: "x", Err: errCause})
		if got, want := errors.Is(err, fault.ErrHost), kind == fault.Host; got != want {
			t.Errorf("kind %d: is ErrHost: %t, want %t", kind, got, want)
		}
	}
	if errors.Is(&fault.Error{Kind: fault.Host, Err: errCause}, fs.ErrNotExist) {
		t.Error("an error of kind Host is fs.ErrNotExist, want it to be ErrHost alone")
	}
}

func TestAsFindsTheOutermost(t *testing.T) {
	inner := &fault.Error{Op: "inner"}
	outer := &fault.Error{Op: "outer", Err: inner}
	for name, c := range map[string]struct {
		err  error
		want *fault.Error
	}{
		"no error":        {nil, nil},
		"of another type": {errCause, nil},
		"itself":          {inner, inner},
		"wrapped":         {fmt.Errorf("x: %w", inner), inner},
		"two":             {fmt.Errorf("x: %w", outer), outer},
		"joined":          {errors.Join(errCause, inner), inner},
	} {
		if got := fault.As(c.err); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestBareLeavesOutWhatAListSaysOnce(t *testing.T) {
	e := &fault.Error{Kind: fault.Host, File: "a.toml", Line: 3, Column: 7, Op: "use KVM", Err: errCause}
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"host":            {e, "use KVM: no such thing"},
		"wrapped":         {fmt.Errorf("outside: %w", e), "use KVM: no such thing"},
		"spec":            {&fault.Error{Kind: fault.Spec, File: "a", Key: "cpu", Err: errCause}, "cpu: no such thing"},
		"of another type": {errCause, "no such thing"},
	} {
		if got := fault.Bare(c.err); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if e.File != "a.toml" {
		t.Errorf("the error's file became %q, want it unchanged", e.File)
	}
}
