package plan

import (
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/vmlatch/vmlatch/launcher/internal/argv"
	"github.com/vmlatch/vmlatch/launcher/spec"
)

// Devices are the tables [[device]]: QEMU's -device, as it is.
type Devices []map[string]any

// Objects are the tables [[object]]: QEMU's -object, as it is.
type Objects []map[string]any

func (all *Devices) complete(g *Guest) error {
	for i, d := range *all {
		if name, ok := d["driver"].(string); !ok || name == "" {
			return g.File.Errorf(fmt.Sprintf("device %d", i+1),
				`driver must be a device's name, such as "virtio-rng-pci"`)
		}
	}
	return onlyPlain(g.File, "device", *all)
}

func (all *Devices) build(b *Builder) error {
	for i, d := range *all {
		if _, ok := d["id"]; !ok {
			d = maps.Clone(d)
			d["id"] = fmt.Sprintf("extra%d", i)
		}
		b.Option("-device", argv.JSON(d))
	}
	return nil
}

func (all *Objects) complete(g *Guest) error {
	if err := onlyPlain(g.File, "object", *all); err != nil {
		return err
	}
	for i, o := range *all {
		for _, key := range []string{"qom-type", "id"} {
			if v, ok := o[key].(string); !ok || v == "" {
				return g.File.Errorf(fmt.Sprintf("object %d", i+1), "%s is missing, or not a string", key)
			}
		}
	}
	return nil
}

func (all *Objects) build(b *Builder) error {
	for _, o := range *all {
		b.Option("-object", argv.JSON(o))
	}
	return nil
}

// onlyPlain refuses values that JSON does not have.
func onlyPlain(f *spec.File, key string, tables []map[string]any) error {
	for i, t := range tables {
		if !plain(t) {
			return f.Errorf(fmt.Sprintf("%s %d", key, i+1), "values must be strings, whole or finite numbers,"+
				" true or false, or lists and tables of them")
		}
	}
	return nil
}

// plain reports whether JSON has the value.
func plain(v any) bool {
	switch v := v.(type) {
	case string, bool, int64:
		return true
	case float64:
		return !math.IsNaN(v) && !math.IsInf(v, 0)
	case []any:
		return !slices.ContainsFunc(v, func(e any) bool { return !plain(e) })
	case map[string]any:
		for _, e := range v {
			if !plain(e) {
				return false
			}
		}
		return true
	}
	return false
}
