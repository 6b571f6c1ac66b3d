// Package cmdline takes QEMU command lines apart.
package cmdline

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Options without a value, of all QEMU versions since 7.2 (QEMU, qemu-options.hx).
var flagOptions = map[string]bool{
	"S": true, "s": true, "daemonize": true, "enable-kvm": true, "full-screen": true, "h": true, "help": true,
	"mem-prealloc": true, "no-acpi": true, "no-fd-bootchk": true, "no-hpet": true, "no-quit": true,
	"no-reboot": true, "no-shutdown": true, "no-user-config": true, "nodefaults": true, "nographic": true,
	"nouserconfig": true, "old-param": true, "only-migratable": true, "preconfig": true, "singlestep": true,
	"snapshot": true, "usb": true, "version": true, "win2k-hack": true, "xen-attach": true,
	"xen-domid-restrict": true, "alt-grab": true, "ctrl-grab": true, "sdl": true, "curses": true,
}

// Option is one option of a command line.
type Option struct {
	Name  string // without dashes
	Value string
	Flag  bool // takes no value
}

// Args returns the option as it stands on a command line.
func (o Option) Args() []string {
	if o.Flag {
		return []string{"-" + o.Name}
	}
	return []string{"-" + o.Name, o.Value}
}

// Parse reads the arguments behind the program.
func Parse(args []string) ([]Option, error) {
	var opts []Option
	for i := 0; i < len(args); i++ {
		name, dashed := strings.CutPrefix(args[i], "-")
		if !dashed || name == "" {
			return nil, fmt.Errorf("%q: swtee reads options only; give disk images with -drive", args[i])
		}
		name = strings.TrimPrefix(name, "-")
		if flagOptions[name] {
			opts = append(opts, Option{Name: name, Flag: true})
			continue
		}
		if i++; i == len(args) {
			return nil, fmt.Errorf("-%s: its value is missing", name)
		}
		opts = append(opts, Option{Name: name, Value: args[i]})
	}
	return opts, nil
}

// Element is one part of an option's value.
type Element struct {
	Key, Value string
	Bare       bool // without "="
}

// Elements are an option's value.
type Elements []Element

// Split takes "a=b,c=d,,e,f" apart: a doubled comma stands for one, and an
// element without "=" is a bare word (QEMU, util/qemu-option.c).
func Split(s string) Elements {
	var out Elements
	for len(s) > 0 {
		var b strings.Builder
		i := 0
		for i < len(s) {
			if s[i] == ',' {
				if i+1 < len(s) && s[i+1] == ',' {
					i++
				} else {
					break
				}
			}
			b.WriteByte(s[i])
			i++
		}
		s = s[min(i+1, len(s)):]
		if b.Len() == 0 {
			continue
		}
		k, v, found := strings.Cut(b.String(), "=")
		out = append(out, Element{k, v, !found})
	}
	return out
}

// String joins the elements, the reverse of Split.
func (es Elements) String() string {
	parts := make([]string, len(es))
	for i, e := range es {
		parts[i] = strings.ReplaceAll(e.Key, ",", ",,")
		if !e.Bare {
			parts[i] += "=" + strings.ReplaceAll(e.Value, ",", ",,")
		}
	}
	return strings.Join(parts, ",")
}

// Get returns the value of the first element with the key.
func (es Elements) Get(key string) string {
	for _, e := range es {
		if e.Key == key {
			return e.Value
		}
	}
	return ""
}

// Set returns the elements with a value changed in its place, or added.
func (es Elements) Set(key, value string) Elements {
	es = slices.Clone(es)
	for i := range es {
		if es[i].Key == key {
			es[i].Value, es[i].Bare = value, false
			return es
		}
	}
	return append(es, Element{Key: key, Value: value})
}

// Type is the bare word or the value of type= with which a value may begin: "" if it has none.
func (es Elements) Type() string {
	if len(es) > 0 && es[0].Bare {
		return es[0].Key
	}
	return es.Get("type")
}

// Drop returns the elements without those of the keys.
func (es Elements) Drop(keys ...string) Elements {
	return slices.DeleteFunc(slices.Clone(es), func(e Element) bool { return slices.Contains(keys, e.Key) })
}

// Object is the value of -object.
type Object struct {
	Type  string
	Props map[string]string
}

// ParseObject reads both forms, "TYPE,id=…" and JSON.
func ParseObject(value string) (Object, error) {
	o := Object{Props: map[string]string{}}
	if !strings.HasPrefix(strings.TrimSpace(value), "{") {
		for i, e := range Split(value) {
			if i == 0 && e.Bare {
				o.Type = e.Key
			}
			o.Props[e.Key] = e.Value
		}
		if o.Type == "" {
			o.Type = o.Props["qom-type"]
		}
		return o, nil
	}
	var raw map[string]any
	if err := json.Unmarshal([]byte(value), &raw); err != nil {
		return o, fmt.Errorf("-object: %w", err)
	}
	for k, v := range raw {
		if n, ok := v.(float64); ok {
			v = strconv.FormatFloat(n, 'f', -1, 64)
		}
		o.Props[k] = fmt.Sprint(v)
	}
	o.Type = o.Props["qom-type"]
	return o, nil
}

// On reports whether a property is set as QEMU reads booleans.
func (o Object) On(key string) bool { return IsOn(o.Props[key]) }

// IsOn reports whether a text means yes to QEMU.
func IsOn(text string) bool {
	switch text {
	case "on", "true", "yes", "y":
		return true
	}
	return false
}

// SetObjectProperty returns the value of -object with one property changed to a
// number, in the form that it had.
func SetObjectProperty(value, key string, n uint32) (string, error) {
	if !strings.HasPrefix(strings.TrimSpace(value), "{") {
		es := Split(value).Drop(key)
		return append(es, Element{Key: key, Value: strconv.FormatUint(uint64(n), 10)}).String(), nil
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal([]byte(value), &raw); err != nil {
		return "", fmt.Errorf("-object: %w", err)
	}
	raw[key] = json.RawMessage(strconv.FormatUint(uint64(n), 10))
	b, err := json.Marshal(raw)
	return string(b), err
}
