package host

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestProbe: what is read of a QEMU's answers.
func TestProbe(t *testing.T) {
	q, err := Probe(t.Context(), fakeQEMU(t, "whole"), "mktme-guest")
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct{ got, want any }{
		"version": {q.Version, "11.1.0"},
		"asked":   {q.Asked, append(Names(slices.Clone(objectTypes)), "mktme-guest")},
		"objects": {q.Objects, map[string]Names{
			"sev-guest": {"policy", "cbitpos"}, "tdx-guest": {"attributes"},
			"mktme-guest": {"key"},
		}},
		"features": {q.Features, map[string]Names{"tdx-guest": {"confidential-guest-reset"}}},
		"machines": {q.Machines, map[string]string{"q35": "pc-q35-11.1"}},
		"q35":      {q.Machine, Names{"smm", "vmport"}},
		"CPUs":     {q.CPUs, Names{"EPYC", "max"}},
		"max CPUs": {q.MaxCPUs, map[string]int{"q35": 4096, "pc-q35-11.1": 4096, "pc-q35-7.2": 288}},
	} {
		if diff := cmp.Diff(c.want, c.got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	for what, c := range map[string]struct{ got, want bool }{
		"an object":                   {q.HasObject("sev-guest"), true},
		"its properties":              {q.HasObject("sev-guest", "policy", "cbitpos"), true},
		"a property that it lacks":    {q.HasObject("sev-guest", "policy", "nonsense"), false},
		"an object that was left out": {q.HasObject("igvm-cfg"), false},
		"a feature":                   {q.HasFeature("tdx-guest", "confidential-guest-reset"), true},
		"another's feature":           {q.HasFeature("sev-guest", "confidential-guest-reset"), false},
		"a machine's property":        {q.HasMachine("smm"), true},
		"one that it lacks":           {q.HasMachine("nonsense"), false},
	} {
		if c.got != c.want {
			t.Errorf("%s: %t, want %t", what, c.got, c.want)
		}
	}
}

// TestProbeOfAFaultyQEMU: each command that fails is named, and so is what QEMU wrote.
func TestProbeOfAFaultyQEMU(t *testing.T) {
	for part, want := range map[string]string{
		"query-qmp-schema":                        "no query-qmp-schema",
		"query-qmp-schema []":                     "unexpected reply",
		"!query-qmp-schema":                       "out of order",
		"!qom-list-properties sev-guest":          "out of order",
		"query-machines":                          "no query-machines",
		"qom-list-properties pc-q35-11.1-machine": "no qom-list-properties",
		"query-cpu-definitions":                   "no query-cpu-definitions",
		"quit":                                    "no quit",
	} {
		_, err := Probe(t.Context(), fakeQEMU(t, part))
		if !errors.Is(err, ErrQEMU) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want ErrQEMU with %q", part, err, want)
		}
	}
	if _, err := Probe(t.Context(), fakeQEMU(t, "!quit")); err != nil {
		t.Errorf("an end without an answer to quit: %v", err)
	}
}

func TestProbeFails(t *testing.T) {
	dir := t.TempDir()
	for name, script := range map[string]string{
		"silent": "exit 0", "loud": "echo out of order >&2; exit 1", "chatty": `printf '{"QMP": {"version"' >&3`,
	} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		_, err := Probe(t.Context(), file)
		if !errors.Is(err, ErrQEMU) || name == "loud" && !strings.Contains(err.Error(), "out of order") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Probe(t.Context(), filepath.Join(dir, "missing")); !errors.Is(err, ErrQEMU) {
		t.Errorf("missing: %v", err)
	}
}

// FuzzObjects: a schema is what a QEMU says, and a QEMU may say anything.
func FuzzObjects(f *testing.F) {
	f.Add(`{"name":"object-add","meta-type":"command","arg-type":"1"}`,
		`{"name":"1","meta-type":"object","variants":[{"case":"x","type":"2"}]}`,
		`{"name":"2","meta-type":"object","members":[{"name":"p"}],"features":["f",{}]}`)
	f.Add(`{"name":"object-add"}`, `[]`, `{"name":1}`)
	f.Fuzz(func(t *testing.T, a, b, c string) {
		objects, err := objectsOf([]json.RawMessage{json.RawMessage(a), json.RawMessage(b), json.RawMessage(c)})
		if err == nil && objects == nil {
			t.Error("no objects and no error")
		}
	})
}
