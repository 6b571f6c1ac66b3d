package spec

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/vmlatch/vmlatch/firmware/nearest"
	"github.com/vmlatch/vmlatch/launcher/fault"
)

// Tables are the parts of a file, by their keys: a pointer each to what the part is
// decoded into. Values that are there already are defaults.
type Tables map[string]any

// decode decodes a file strictly. It returns where each key is written, as an offset.
func (t Tables) decode(b []byte, path string) (map[string]int, error) {
	names := slices.Sorted(maps.Keys(t))
	fields := make([]reflect.StructField, len(names))
	for i, name := range names {
		fields[i] = reflect.StructField{
			Name: fmt.Sprintf("Table%d", i), Type: reflect.TypeOf(t[name]).Elem(),
			Tag: reflect.StructTag(`toml:"` + name + `"`),
		}
	}
	whole := reflect.New(reflect.StructOf(fields))
	for i, name := range names {
		whole.Elem().Field(i).Set(reflect.ValueOf(t[name]).Elem())
	}
	keys, err := decodeStrict(b, path, whole.Interface())
	if err != nil {
		return nil, err
	}
	for i, name := range names {
		reflect.ValueOf(t[name]).Elem().Set(whole.Elem().Field(i))
	}
	return keys, nil
}

// decodeStrict decodes a file into a struct, with errors that name file, line and a
// near key.
func decodeStrict(b []byte, path string, to any) (map[string]int, error) {
	fail := func(row, col int, key []string, format string, args ...any) error {
		return &fault.Error{
			Kind: fault.Spec, File: path, Line: row, Column: col,
			Key: strings.Join(key, "."), Err: fmt.Errorf(format, args...),
		}
	}
	if _, why, at := plainText(b); why != "" {
		row, col := position(b, at)
		return nil, fail(row, col, nil, "%s", why)
	}
	// go-toml takes keys in any case, does not name all of an unknown one, and compares
	// each with all others. It also takes 300 for 300 nanoseconds.
	shapes, offsets, counts := shapes{}, map[string]int{}, map[string]int{}
	for i, k := range keysOf(b) {
		t, known := shapes.typeOf(reflect.TypeOf(to), k.path)
		row, col := 0, 0
		if !known || i == maxKeys || tooLong(k.path) {
			row, col = position(b, k.offset)
		}
		switch {
		case !known:
			e := fault.As(fail(row, col, k.path, "unknown key"))
			e.Fix = shapes.hint(t, k.path)
			return nil, e
		case i == maxKeys:
			return nil, fail(row, col, nil, "has more than %d keys", maxKeys)
		case tooLong(k.path):
			return nil, fail(row, col, nil, "a key with the tables around it has more than %d bytes", maxKey)
		case k.bare != "" && readsText(t):
			row, col = position(b, k.value)
			return nil, fail(row, col, k.path, "must be %s, not %s", typeInWords(t.String()), k.bare)
		}
		name := strings.Join(k.path, ".")
		if k.array { // its tables are "disk 1", "disk 2", …
			counts[name]++
			offsets[fmt.Sprintf("%s %d", name, counts[name])] = k.offset
		}
		if _, twice := offsets[name]; !twice { // of an array's tables the first
			offsets[name] = k.offset
		}
	}
	var decode *toml.DecodeError
	switch err := toml.Unmarshal(b, to); {
	case errors.As(err, &decode):
		row, col := decode.Position()
		if says := unexpected(at(b, row, col)); says != "" {
			return nil, fail(row, col, decode.Key(), "%s", says)
		}
		return nil, fail(row, col, decode.Key(), "%s", inWords(decode.Error()))
	case err != nil:
		return nil, fail(0, 0, nil, "%s", inWords(err.Error()))
	}
	return offsets, nil
}

// Bounds of a file, far beyond those that people write.
const (
	maxKeys = 5_000
	maxKey  = 1000 // bytes, with the tables around it
)

// tooLong reports whether a key exceeds its bound.
func tooLong(path []string) bool {
	n := 0
	for _, name := range path {
		n += len(name) + len(".")
	}
	return n > maxKey
}

// position is the line and the column of an offset, both from 1.
func position(b []byte, offset int) (line, column int) {
	before := b[:offset]
	return bytes.Count(before, []byte("\n")) + 1, offset - bytes.LastIndexByte(before, '\n')
}

// at is the text from a line and a column on.
func at(b []byte, line, column int) []byte {
	for ; line > 1; line-- {
		_, b, _ = bytes.Cut(b, []byte("\n"))
	}
	return b[min(max(column-1, 0), len(b)):]
}

// key is one key of a file, with those of the tables around it.
type key struct {
	path   []string
	offset int // in bytes
	// bare is its value where that stands without quotes, and value its offset.
	bare  string
	value int
	array bool // it begins one table of an array
}

// keysOf lists the keys of a file, up to the first that is not valid TOML, and no
// further than bounds allow.
func keysOf(b []byte) (all []key) {
	var p unstable.Parser
	p.Reset(b)
	var table []string
	// named adds the parts of a key, which may be dotted, to those before it.
	named := func(prefix []string, parts unstable.Iterator) []string {
		path := slices.Clone(prefix)
		for !tooLong(path) && parts.Next() {
			path = append(path, string(parts.Node().Data))
			all = append(all, key{path: path[:len(path):len(path)], offset: int(parts.Node().Raw.Offset)})
		}
		return path
	}
	var inside func(path []string, value *unstable.Node)
	pair := func(prefix []string, n *unstable.Node) {
		path, value := named(prefix, n.Key()), n.Value()
		switch value.Kind {
		case unstable.String, unstable.Array, unstable.InlineTable:
		default:
			last := &all[len(all)-1]
			last.bare, last.value = string(value.Data), int(value.Raw.Offset)
		}
		inside(path, value)
	}
	inside = func(path []string, value *unstable.Node) {
		for it := value.Children(); it.Next() && !tooLong(path) && len(all) <= maxKeys; {
			switch n := it.Node(); {
			case value.Kind == unstable.Array:
				inside(path, n)
			case value.Kind == unstable.InlineTable:
				pair(path, n)
			}
		}
	}
	for len(all) <= maxKeys && p.NextExpression() {
		switch n := p.Expression(); n.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = named(nil, n.Key())
			all[len(all)-1].array = n.Kind == unstable.ArrayTable
		case unstable.KeyValue:
			pair(table, n)
		}
	}
	return all
}

// shapes has the keys of each struct, by its type.
type shapes map[reflect.Type]map[string]reflect.Type

// fields returns the keys of the struct behind pointers and slices; nil if there is
// no struct: then the keys are the user's own.
func (s shapes) fields(t reflect.Type) map[string]reflect.Type {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	if s[t] == nil {
		s[t] = map[string]reflect.Type{}
		for _, f := range reflect.VisibleFields(t) {
			if name := f.Tag.Get("toml"); name != "" {
				s[t][name] = f.Type
			}
		}
	}
	return s[t]
}

// typeOf is the type of a key's value; nil where the keys are the user's own. Of a key
// that is not known it is the type that lacks it.
func (s shapes) typeOf(t reflect.Type, path []string) (of reflect.Type, known bool) {
	for _, name := range path {
		table := s.fields(t)
		if table == nil {
			return nil, true
		}
		next, ok := table[name]
		if !ok {
			return t, false
		}
		t = next
	}
	return t, true
}

// readsText reports whether a type reads its values from text, as sizes do.
func readsText(t reflect.Type) bool {
	return t != nil && reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// hint asks for the known key that a mistyped one resembles, in the table that lacks
// it. Keys are looked at part by part, so the mistyped part is the last.
func (s shapes) hint(t reflect.Type, path []string) string {
	word, known := path[len(path)-1], s.fields(t)
	if said, ok := synonyms[word]; ok && known[said] != nil {
		word = said
	}
	return nearest.Hint(word, slices.Sorted(maps.Keys(known)))
}

// synonyms are words of other tools, by the key that a spec has for them.
var synonyms = map[string]string{
	"file": "image", "path": "image", "code": "image", "source": "image",
	"vcpus": "cpus", "smp": "cpus", "mem": "memory", "ram": "memory",
	"append": "cmdline", "args": "cmdline", "type": "technology", "hostfwd": "forward", "ports": "forward",
	"emulator": "qemu", "readonly": "read-only", "model": "cpu",
}

// wrongType is how go-toml reports a value of the wrong type.
var wrongType = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^cannot decode TOML ([a-z ]+) into (?:struct field .* of type )?(\S+)$`)
})

// inWords replaces Go's names of types by those of a spec.
func inWords(text string) string {
	text = strings.TrimPrefix(text, "toml: ")
	m := wrongType().FindStringSubmatch(text)
	if m == nil {
		return text
	}
	return fmt.Sprintf("must be %s, not of type %s", typeInWords(m[2]), m[1])
}

// typeInWords is what a spec has for one of Go's types.
func typeInWords(name string) string {
	for _, t := range []struct{ name, words string }{
		{"int", "a number"},
		{"string", "text in quotes"},
		{"bool", "true or false"},
		{"[]string", "a list of strings"},
		{"bytesize.Size", `a size in quotes, such as "2GiB"`},
		{"spec.Duration", `a duration in quotes, such as "5m"`},
	} {
		if t.name == name {
			return t.words
		}
	}
	return "a table"
}
