package main

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// TestPublishedRecord: what is recorded today is published whole, under the same keys, but for the
// identities of processes: QEMU's pid is published.
func TestPublishedRecord(t *testing.T) {
	var r rundir.Record
	fill(reflect.ValueOf(&r).Elem())
	r.Schema, r.Process, r.Wrapped, r.Helpers = recordSchema, nil, false, nil
	kept, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	published, err := json.MarshalIndent(publish(&r), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(kept), string(published)); diff != "" {
		t.Errorf("-recorded +published:\n%s", diff)
	}
	if publish(nil) != nil {
		t.Error("no record is published as one")
	}
}

// fill gives every field a value that is not its zero.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		if _, ok := v.Interface().(time.Time); ok {
			v.Set(reflect.ValueOf(time.Date(2026, 11, 27, 1, 2, 3, 0, time.UTC)))
			return
		}
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.String:
		v.SetString(v.Type().String())
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int:
		v.SetInt(7)
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(7)
	}
}
