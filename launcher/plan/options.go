package plan

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Options is a command line taken apart again, so that checks see what QEMU would
// and not what the builder meant.
type Options struct {
	Values map[string][]string
	Flags  map[string]bool
}

// flagOptions take no value.
var flagOptions = []string{"-nodefaults", "-no-user-config", "-S", "-no-reboot"}

// ParseOptions takes a command line apart. What comes first is the program.
func ParseOptions(argv []string) *Options {
	o := &Options{Values: map[string][]string{}, Flags: map[string]bool{}}
	for i := 1; i < len(argv); i++ {
		if slices.Contains(flagOptions, argv[i]) || i+1 == len(argv) {
			o.Flags[argv[i]] = true
			continue
		}
		o.Values[argv[i]] = append(o.Values[argv[i]], argv[i+1])
		i++
	}
	return o
}

// One returns an option that stands there once.
func (o *Options) One(name string) string {
	if v := o.Values[name]; len(v) == 1 {
		return v[0]
	}
	return ""
}

// Machine returns a property of the machine.
func (o *Options) Machine(property string) string { return Properties(o.One("-machine"))[property] }

// Device is a device or an object: its type and properties.
type Device struct {
	Kind  string
	Props map[string]string
}

// Objects are what -object makes.
func (o *Options) Objects() []Device {
	var all []Device
	for _, v := range o.Values["-object"] {
		p := Properties(v)
		all = append(all, Device{p["qom-type"], p})
	}
	return all
}

// Protection is the object that protects the guest.
func (o *Options) Protection() (Device, bool) {
	id := o.Machine("confidential-guest-support")
	for _, d := range o.Objects() {
		if id != "" && d.Props["id"] == id {
			return d, true
		}
	}
	return Device{}, false
}

// Properties reads either form of an option's value; its first bare word is the
// driver or the type.
func Properties(value string) map[string]string {
	if strings.HasPrefix(value, "{") {
		var m map[string]any
		if json.Unmarshal([]byte(value), &m) != nil {
			return nil
		}
		return Texts(m)
	}
	p := map[string]string{}
	const comma = "\x00" // a doubled comma is one that ends nothing
	for i, part := range strings.Split(strings.ReplaceAll(value, ",,", comma), ",") {
		part = strings.ReplaceAll(part, comma, ",")
		key, v, ok := strings.Cut(part, "=")
		if !ok && i == 0 {
			p["driver"], p["qom-type"] = part, part
			continue
		}
		p[key] = v
	}
	return p
}

// Texts writes a JSON object's values as the other form has them.
func Texts(m map[string]any) map[string]string {
	p := map[string]string{}
	for k, v := range m {
		switch v := v.(type) {
		case bool:
			p[k] = map[bool]string{true: "on", false: "off"}[v]
		case float64:
			p[k] = fmt.Sprintf("%.0f", v)
		default:
			p[k] = fmt.Sprint(v)
		}
	}
	return p
}
