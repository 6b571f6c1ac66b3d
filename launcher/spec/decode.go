package spec

import (
	"bytes"
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
	unknown := func(row, col int, key []string) error {
		e := fault.As(fail(row, col, key, "unknown key"))
		e.Fix = shapes{}.hint(reflect.TypeOf(to), key)
		return e
	}
	var decode *toml.DecodeError
	switch err := toml.Unmarshal(b, to); {
	case errors.As(err, &decode):
		row, col := decode.Position()
		return nil, fail(row, col, decode.Key(), "%s", inWords(decode.Error()))
	case err != nil:
		return nil, fail(0, 0, nil, "%s", inWords(err.Error()))
	}
	// go-toml takes keys in any case, and does not name all of an unknown one.
	shapes, offsets := shapes{}, map[string]int{}
	for _, k := range keysOf(b) {
		if !shapes.know(reflect.TypeOf(to), k.path) {
			row, col := position(b, k.offset)
			return nil, unknown(row, col, k.path)
		}
		name := strings.Join(k.path, ".")
		if _, twice := offsets[name]; !twice { // of an array's tables the first
			offsets[name] = k.offset
		}
	}
	return offsets, nil
}

// position is the line and the column of an offset, both from 1.
func position(b []byte, offset int) (line, column int) {
	before := b[:offset]
	return bytes.Count(before, []byte("\n")) + 1, offset - bytes.LastIndexByte(before, '\n')
}

// key is one key of a file, with those of the tables around it.
type key struct {
	path   []string
	offset int // in bytes
}

// keysOf lists the keys of a file that is known to be valid.
func keysOf(b []byte) (all []key) {
	var p unstable.Parser
	p.Reset(b)
	var table []string
	// named adds the parts of a key, which may be dotted, to those before it.
	named := func(prefix []string, parts unstable.Iterator) []string {
		path := slices.Clone(prefix)
		for parts.Next() {
			path = append(path, string(parts.Node().Data))
			all = append(all, key{path[:len(path):len(path)], int(parts.Node().Raw.Offset)})
		}
		return path
	}
	var inside func(path []string, value *unstable.Node)
	inside = func(path []string, value *unstable.Node) {
		for it := value.Children(); it.Next(); {
			switch n := it.Node(); {
			case value.Kind == unstable.Array:
				inside(path, n)
			case value.Kind == unstable.InlineTable:
				inside(named(path, n.Key()), n.Value())
			}
		}
	}
	for p.NextExpression() {
		switch n := p.Expression(); n.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = named(nil, n.Key())
		case unstable.KeyValue:
			inside(named(table, n.Key()), n.Value())
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

// know reports whether a struct has a key.
func (s shapes) know(t reflect.Type, path []string) bool {
	_, _, ok := s.find(t, path)
	return ok
}

// find follows a key as far as it is known: to the keys of the table where it is not,
// and the name that they lack.
func (s shapes) find(t reflect.Type, path []string) (table map[string]reflect.Type, name string, ok bool) {
	for _, name := range path {
		table := s.fields(t)
		if table == nil {
			break
		}
		next, ok := table[name]
		if !ok {
			return table, name, false
		}
		t = next
	}
	return nil, "", true
}

// hint asks for the known key that a mistyped one resembles, in its table.
func (s shapes) hint(t reflect.Type, path []string) string {
	table, name, ok := s.find(t, path)
	if ok {
		return ""
	}
	return nearest.Hint(name, slices.Sorted(maps.Keys(table)))
}

// wrongType is how go-toml reports a value of the wrong type.
var wrongType = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^cannot decode TOML (\w+) into .*of type (\S+)$`)
})

// inWords replaces Go's names of types by those of a spec.
func inWords(text string) string {
	text = strings.TrimPrefix(text, "toml: ")
	m := wrongType().FindStringSubmatch(text)
	if m == nil {
		return text
	}
	want := "something else"
	for _, t := range []struct{ name, words string }{
		{"int", "a number"},
		{"string", "text in quotes"},
		{"bool", "true or false"},
		{"[]string", "a list of strings"},
		{"spec.Size", `a size in quotes, such as "2GiB"`},
		{"spec.Duration", `a duration in quotes, such as "5m"`},
	} {
		if t.name == m[2] {
			want = t.words
		}
	}
	return fmt.Sprintf("must be %s, not of type %s", want, m[1])
}
