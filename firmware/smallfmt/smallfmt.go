// Package smallfmt formats errors and messages of programs that must be small: package fmt and the
// reflection below it are a fifteenth of an agent in an initrd.
package smallfmt

import (
	"strconv"
	"strings"
)

// Sprintf is fmt.Sprintf for the verbs %s, %v, %d, %q (of Quote) and %w without flags, and for
// texts, integers and errors. Anything else is written as ?: a call of String would link that of
// every type.
func Sprintf(format string, args ...any) string {
	s, _ := sprintf(format, args)
	return s
}

// Errorf is fmt.Errorf in the same bounds. The error wraps each argument of %w.
func Errorf(format string, args ...any) error {
	s, wrapped := sprintf(format, args)
	return &wrapper{s, wrapped}
}

type wrapper struct {
	text string
	errs []error
}

func (w *wrapper) Error() string   { return w.text }
func (w *wrapper) Unwrap() []error { return w.errs }

func sprintf(format string, args []any) (text string, wrapped []error) {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(format, "%")
		b.WriteString(before)
		if !found || rest == "" {
			return b.String(), wrapped
		}
		verb := rest[0]
		format = rest[1:]
		if verb == '%' {
			b.WriteByte('%')
			continue
		}
		if len(args) == 0 {
			b.WriteByte('?')
			continue
		}
		s := value(args[0])
		if err, ok := args[0].(error); ok && verb == 'w' {
			wrapped = append(wrapped, err)
		}
		if verb == 'q' {
			s = Quote(s)
		}
		b.WriteString(s)
		args = args[1:]
	}
}

func value(arg any) string {
	switch v := arg.(type) {
	case string:
		return v
	case []byte:
		return string(v)
	case error:
		return v.Error()
	case int:
		return strconv.Itoa(v)
	case int64:
		return strconv.FormatInt(v, 10)
	case uint8:
		return strconv.FormatUint(uint64(v), 10)
	case uint16:
		return strconv.FormatUint(uint64(v), 10)
	case uint32:
		return strconv.FormatUint(uint64(v), 10)
	case uint64:
		return strconv.FormatUint(v, 10)
	}
	return "?"
}

// Quote is a text in quotes, in which everything but printable ASCII is \xNN.
func Quote(s string) string { return `"` + Escape(s) + `"` }

// Escape makes a text harmless for a terminal: everything but printable ASCII becomes \xNN.
func Escape(s string) string {
	b := make([]byte, 0, len(s)+2)
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ' || c > '~':
			b = append(b, '\\', 'x', digits[c>>4], digits[c&15])
		default:
			b = append(b, c)
		}
	}
	return string(b)
}
