package launcher

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/xrash/smetrics"
)

// SpecError is an error in a spec file.
type SpecError struct {
	File   string
	Line   int // 0 if unknown
	Column int
	Key    string
	Msg    string
	Near   string // a key that was perhaps meant
	Check  string // the check that found it, if one did
	Fix    string // what to do, if the check knows
}

func (e *SpecError) Error() string {
	at := e.File
	if e.Line > 0 {
		at += fmt.Sprintf(":%d:%d", e.Line, e.Column)
	}
	if e.Key != "" {
		return fmt.Sprintf("%s: %s: %s", at, e.Key, e.Msg)
	}
	return fmt.Sprintf("%s: %s", at, e.Msg)
}

// decodeTOML is strict decoding with errors that name file, line and a near key. It
// also returns what the file has, as it has it.
func decodeTOML(b []byte, file string, to any) (tree map[string]any, err error) {
	d := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	err = d.Decode(to)
	var strict *toml.StrictMissingError
	var decode *toml.DecodeError
	switch {
	case err == nil:
		return exactKeys(b, file, reflect.TypeOf(to))
	case errors.As(err, &strict) && len(strict.Errors) > 0:
		first := strict.Errors[0]
		row, col := first.Position()
		key := first.Key()
		return nil, &SpecError{
			File: file, Line: row, Column: col, Key: strings.Join(key, "."), Msg: "unknown key",
			Near: nearKey(reflect.TypeOf(to), key),
		}
	case errors.As(err, &decode):
		row, col := decode.Position()
		return nil, &SpecError{File: file, Line: row, Column: col, Key: strings.Join(decode.Key(), "."), Msg: inWords(decode.Error())}
	}
	return nil, &SpecError{File: file, Msg: inWords(err.Error())}
}

// exactKeys refuses keys in another case than the struct's: TOML's keys differ by
// case, and go-toml takes them all the same.
func exactKeys(b []byte, file string, t reflect.Type) (tree map[string]any, err error) {
	if err := toml.Unmarshal(b, &tree); err != nil {
		return nil, &SpecError{File: file, Msg: inWords(err.Error())}
	}
	if key := inexact(tree, t); key != nil {
		return nil, &SpecError{File: file, Key: strings.Join(key, "."), Msg: "unknown key", Near: strings.ToLower(key[len(key)-1])}
	}
	return tree, nil
}

// inexact returns the path of the first key that no tag of the type is, nil if there
// is none.
func inexact(v any, t reflect.Type) []string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch v := v.(type) {
	case []any:
		if t.Kind() == reflect.Slice {
			for _, e := range v {
				if key := inexact(e, t.Elem()); key != nil {
					return key
				}
			}
		}
	case map[string]any:
		if t.Kind() != reflect.Struct {
			return nil // its keys are the user's
		}
		known := map[string]reflect.Type{}
		for f := range t.Fields() {
			known[f.Tag.Get("toml")] = f.Type
		}
		for _, name := range slices.Sorted(maps.Keys(v)) {
			ft, ok := known[name]
			if !ok {
				return []string{name}
			}
			if key := inexact(v[name], ft); key != nil {
				return append([]string{name}, key...)
			}
		}
	}
	return nil
}

// inWords says of a value of the wrong type what the right one is, without Go's
// names for it.
func inWords(text string) string {
	text = strings.TrimPrefix(text, "toml: ")
	m := regexp.MustCompile(`^cannot decode TOML (\w+) into .*of type (\S+)$`).FindStringSubmatch(text)
	if m == nil {
		return text
	}
	want, ok := map[string]string{"int": "a number", "string": "text in quotes", "bool": "true or false", "[]string": "a list of texts", "launcher.Size": "a size in quotes, such as \"2GiB\"", "launcher.Duration": "a duration in quotes, such as \"5m\""}[m[2]]
	if !ok {
		want = "something else"
	}
	return fmt.Sprintf("must be %s, and not of type %s", want, m[1])
}

// unwrapPath leaves a file's name out of an error that names it once more.
func unwrapPath(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}

// nearKey finds the known key that a mistyped one is closest to, in its table.
func nearKey(t reflect.Type, key []string) string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || len(key) == 0 {
		return ""
	}
	var names []string
	for f := range t.Fields() {
		name := f.Tag.Get("toml")
		if name == "" {
			continue
		}
		names = append(names, name)
		if name == key[0] {
			return nearKey(f.Type, key[1:])
		}
	}
	best, bestScore := "", 0.8
	for _, n := range names {
		if score := smetrics.JaroWinkler(key[0], n, 0.7, 4); score > bestScore {
			best, bestScore = n, score
		}
	}
	return best
}

func collectKeys(set map[string]bool, prefix string, tree map[string]any) {
	for k, v := range tree {
		set[prefix+k] = true
		if sub, ok := v.(map[string]any); ok {
			collectKeys(set, prefix+k+".", sub)
		}
	}
}
