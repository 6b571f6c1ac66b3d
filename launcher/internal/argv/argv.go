// Package argv renders QEMU command lines. Every value passes through one
// escaping type, so that no path can add an option.
package argv

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Option is the value of one QEMU option in key=value form.
type Option struct{ b strings.Builder }

// New begins an option value with its bare first word: a driver or a type.
func New(first string) *Option {
	o := &Option{}
	o.b.WriteString(escape(first))
	return o
}

// Key begins an option value that has no bare first word.
func Key(key, value string) *Option {
	o := &Option{}
	o.b.WriteString(key + "=" + escape(value))
	return o
}

// Set adds key=value.
func (o *Option) Set(key, value string) *Option {
	o.b.WriteString("," + key + "=" + escape(value))
	return o
}

// SetInt adds key=n.
func (o *Option) SetInt(key string, n int) *Option { return o.Set(key, fmt.Sprint(n)) }

// SetBool adds key=on or key=off.
func (o *Option) SetBool(key string, on bool) *Option {
	if on {
		return o.Set(key, "on")
	}
	return o.Set(key, "off")
}

func (o *Option) String() string { return o.b.String() }

// escape doubles commas, which otherwise end a value (QEMU, util/qemu-option.c).
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// JSON renders an option in JSON form, keys sorted.
func JSON(props map[string]any) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(props); err != nil {
		panic(err) // maps of strings, numbers and maps always encode
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// Quote renders a command line for a POSIX shell.
func Quote(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = quote(a)
	}
	return strings.Join(quoted, " ")
}

func quote(s string) string {
	plain := func(r rune) bool {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		return letter || r >= '0' && r <= '9' || strings.ContainsRune("-_./,:=+@%", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// IDs hands out ids that never clash: disk0, disk1, net0, …
type IDs struct{ next map[string]int }

// New returns the next id of a kind.
func (a *IDs) New(kind string) string {
	if a.next == nil {
		a.next = map[string]int{}
	}
	n := a.next[kind]
	a.next[kind]++
	return fmt.Sprintf("%s%d", kind, n)
}
