package main

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/launcher"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// TestPSSchema: the published schema has exactly the keys that ps prints, and its
// states are the launcher's.
func TestPSSchema(t *testing.T) {
	var schema struct {
		Defs map[string]node `json:"$defs"`
	}
	if err := json.Unmarshal([]byte(topicPSJSON), &schema); err != nil {
		t.Fatal(err)
	}
	vm := schema.Defs["vm"]
	for _, name := range []string{"exit", "record", "failure"} {
		vm.Properties[name] = schema.Defs[name]
	}
	vm.Properties["record"].Properties["confinement"] = schema.Defs["confinement"]
	compareKeys(t, "vm", vm, reflect.TypeFor[vmInfo]())
	for _, s := range []launcher.State{
		launcher.Launching, launcher.Paused, launcher.Measured, launcher.Provisioned, launcher.Running,
		launcher.Stopping, launcher.Stopped, launcher.Provisioning, launcher.Releasing, launcher.Failed,
	} {
		if !slices.Contains(vm.Properties["state"].Enum, string(s)) {
			t.Errorf("state %s is not in the schema", s)
		}
	}
	if got := vm.Properties["record"].Properties["technology"].Enum; !slices.Equal(got, tee.Names()) {
		t.Errorf("technologies %v, the launcher's are %v", got, tee.Names())
	}
}

type node struct {
	Properties map[string]node `json:"properties"`
	Required   []string        `json:"required"`
	Items      *node           `json:"items"`
	Enum       []string        `json:"enum"`
	Others     any             `json:"additionalProperties"`
}

// compareKeys compares a schema's keys with those of a struct, and those below.
func compareKeys(t *testing.T, at string, n node, typ reflect.Type) {
	t.Helper()
	if typ.Kind() == reflect.Map { // of names that are not fixed
		if n.Others == nil {
			t.Errorf("%s: nothing is said of its values", at)
		}
		return
	}
	for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice && typ.Elem().Kind() != reflect.Uint8 {
		if typ.Kind() == reflect.Slice {
			if n.Items == nil {
				t.Errorf("%s: no items", at)
				return
			}
			n = *n.Items
		}
		typ = typ.Elem()
	}
	if typ.Kind() != reflect.Struct || typ.PkgPath() == "time" {
		return
	}
	var keys []string
	for i := range typ.NumField() {
		key, options, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
		keys = append(keys, key)
		below, ok := n.Properties[key]
		if !ok {
			t.Errorf("%s.%s is not in the schema", at, key)
			continue
		}
		if always := options != "omitempty"; always != slices.Contains(n.Required, key) {
			t.Errorf("%s.%s: always printed is %t, the schema says %t", at, key, always, !always)
		}
		compareKeys(t, at+"."+key, below, typ.Field(i).Type)
	}
	for key := range n.Properties {
		if !slices.Contains(keys, key) {
			t.Errorf("%s.%s is in the schema, and never printed", at, key)
		}
	}
}
