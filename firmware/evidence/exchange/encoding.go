package exchange

import (
	"bytes"
	"encoding/base64"
	"errors"
	"slices"
	"strconv"

	"github.com/vmlatch/vmlatch/firmware/smallfmt"
)

// MaxLine is the longest message, in bytes, with the line's end.
const MaxLine = 256 << 10

// ErrMessage is wrapped by errors about messages that are not as the protocol has them.
var ErrMessage = errors.New("malformed message")

// message is anything that has the one form. Its code method names the fields in their order, for
// writing and for reading alike.
type message interface{ code(c *codec) }

// codec writes or reads the one form of a message: compact JSON with the fields in order. JSON has
// many forms of one value, and a signature or a hash must not mean two things, so a library that
// reads all of them would be of no use here.
type codec struct {
	reading bool
	b       []byte // what was written, or what is left to read
	comma   bool
	err     error
}

// encode writes a message.
func encode(m message) []byte { return encodeInto(nil, m) }

// encodeInto appends to a buffer. If it has room for all of it, no copy is left behind.
func encodeInto(b []byte, m message) []byte {
	c := &codec{b: b}
	c.object(m)
	return c.b
}

// decode reads a message, and refuses any other form of it than the one that encode writes.
func decode(b []byte, m message) error {
	if len(b) > MaxLine {
		return smallfmt.Errorf("%w: %d bytes, at most %d", ErrMessage, len(b), MaxLine)
	}
	c := &codec{reading: true, b: b}
	c.object(m)
	if len(c.b) > 0 {
		c.fail("something is behind its end")
	}
	return c.err
}

func (c *codec) fail(why string) {
	if c.err == nil {
		c.err = smallfmt.Errorf("%w: %s", ErrMessage, why)
	}
}

// lit writes a text, or reads exactly it.
func (c *codec) lit(text string) {
	if !c.reading {
		c.b = append(c.b, text...)
		return
	}
	if c.err != nil {
		return
	}
	if len(c.b) < len(text) || string(c.b[:len(text)]) != text {
		c.fail("it is not in the one form that counts")
		return
	}
	c.b = c.b[len(text):]
}

// next reports whether a text is what is read next.
func (c *codec) next(text string) bool {
	return c.err == nil && len(c.b) >= len(text) && string(c.b[:len(text)]) == text
}

func (c *codec) object(m message) {
	c.lit("{")
	c.comma = false
	m.code(c)
	c.lit("}")
	c.comma = true
}

func (c *codec) label(name string) string {
	if c.comma {
		return `,"` + name + `":`
	}
	return `"` + name + `":`
}

// field is a field's name, and what stands before it.
func (c *codec) field(name string) {
	c.lit(c.label(name))
	c.comma = true
}

// quoted is a text in quotes. None has characters that JSON must escape.
func (c *codec) quoted(s *string) {
	if !c.reading {
		c.b = append(append(append(c.b, '"'), *s...), '"')
		return
	}
	*s = string(c.inQuotes())
}

// inQuotes reads what is in quotes, where it lies.
func (c *codec) inQuotes() []byte {
	c.lit(`"`)
	if c.err != nil {
		return nil
	}
	n := slices.IndexFunc(c.b, func(x byte) bool { return x == '"' || x == '\\' || x < ' ' || x > '~' })
	if n < 0 || c.b[n] != '"' {
		c.fail("a text is not as it must be")
		return nil
	}
	text := c.b[:n]
	c.b = c.b[n+1:]
	return text
}

func (c *codec) text(name string, s *string) {
	c.field(name)
	c.quoted(s)
}

// optText is a text that is left out where it is empty.
func (c *codec) optText(name string, s *string) {
	if c.reading && c.next(c.label(name)) || !c.reading && *s != "" {
		c.text(name, s)
		if c.reading && *s == "" {
			c.fail("an empty text is not left out")
		}
	}
}

// number is a number of at most 53 bits, which every JSON reader has.
func (c *codec) number(name string, n *uint64) {
	c.field(name)
	if !c.reading {
		c.b = strconv.AppendUint(c.b, *n, 10)
		return
	}
	end := 0
	for end < len(c.b) && c.b[end] >= '0' && c.b[end] <= '9' {
		end++
	}
	v, err := strconv.ParseUint(string(c.b[:end]), 10, 53)
	if err != nil || end > 1 && c.b[0] == '0' {
		c.fail("a number is not as it must be")
		return
	}
	*n, c.b = v, c.b[end:]
}

func (c *codec) integer(name string, n *int) {
	v := uint64(max(*n, 0))
	if c.number(name, &v); c.err == nil {
		*n = int(v)
	}
}

func (c *codec) small(name string, n *uint8) {
	v := uint64(*n)
	c.number(name, &v)
	if v > 255 {
		c.fail("a number is out of its range")
	}
	*n = uint8(v)
}

func (c *codec) flag(name string, on *bool) {
	c.field(name)
	if c.reading {
		*on = c.next("true")
	}
	c.lit(strconv.FormatBool(*on))
}

// blob is base64 (RFC 4648, section 4, with padding).
func (c *codec) blob(name string, b *[]byte) {
	c.field(name)
	c.base64(b)
}

func (c *codec) base64(b *[]byte) {
	if !c.reading {
		c.b = append(base64.StdEncoding.AppendEncode(append(c.b, '"'), *b), '"')
		return
	}
	text := c.inQuotes() // which may be a secret: it never becomes a string
	if c.err != nil {
		return
	}
	raw := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Strict().Decode(raw, text)
	if err != nil || bytes.IndexByte(text, '\n') >= 0 {
		clear(raw)
		c.fail("not base64 of RFC 4648")
		return
	}
	*b = raw[:n]
}

// optBlob is base64 that is left out where it is empty.
func (c *codec) optBlob(name string, b *[]byte) {
	if c.reading && c.next(c.label(name)) || !c.reading && len(*b) > 0 {
		c.blob(name, b)
		if c.reading && len(*b) == 0 {
			c.fail("an empty field is not left out")
		}
	}
}

// fixed is base64 of a fixed length.
func (c *codec) fixed(name string, b []byte) {
	raw := slices.Clone(b)
	c.blob(name, &raw)
	if len(raw) != len(b) {
		c.fail(smallfmt.Sprintf("%s must have %d bytes", name, len(b)))
		return
	}
	copy(b, raw)
}

// hash is lower-case hex of a fixed length.
func (c *codec) hash(name string, b []byte) {
	c.field(name)
	c.hex(b)
}

func (c *codec) hex(b []byte) {
	s := smallfmt.Hex(b)
	if c.quoted(&s); c.err != nil || !c.reading {
		return
	}
	raw, err := smallfmt.Unhex(s)
	if err != nil || len(raw) != len(b) || s != smallfmt.Hex(raw) {
		c.fail(smallfmt.Sprintf("not a hash of %d bytes in hex", len(b)))
		return
	}
	copy(b, raw)
}

func (c *codec) key(name string, k *Key) {
	s := k.String()
	if c.text(name, &s); c.err != nil || !c.reading {
		return
	}
	var err error
	if *k, err = ParseKey(s); err != nil {
		c.err = smallfmt.Errorf("%w: %w", ErrMessage, err)
	}
}

// list is a list of texts.
func (c *codec) list(name string, list *[]string) {
	c.field(name)
	c.lit("[")
	if !c.reading {
		for i := range *list {
			if i > 0 {
				c.lit(",")
			}
			c.quoted(&(*list)[i])
		}
	} else {
		*list = nil
		for !c.next("]") && c.err == nil {
			if len(*list) > 0 {
				c.lit(",")
			}
			var s string
			c.quoted(&s)
			*list = append(*list, s)
		}
	}
	c.lit("]")
}

// dictionary is an object whose fields are sorted names.
func dictionary[V any](c *codec, name string, m *map[string]V, value func(*V)) {
	c.field(name)
	c.lit("{")
	if !c.reading {
		for i, key := range sortedKeys(*m) {
			if i > 0 {
				c.lit(",")
			}
			v := (*m)[key]
			c.quoted(&key)
			c.lit(":")
			value(&v)
		}
	} else {
		*m = map[string]V{}
		for last := ""; !c.next("}") && c.err == nil; {
			if len(*m) > 0 {
				c.lit(",")
			}
			var key string
			var v V
			c.quoted(&key)
			c.lit(":")
			if value(&v); len(*m) > 0 && key <= last {
				c.fail("names are not sorted, or stand there twice")
			}
			(*m)[key], last = v, key
		}
	}
	c.lit("}")
	c.comma = true
}

// nested is an object within a message.
func (c *codec) nested(name string, m message) {
	c.field(name)
	c.object(m)
}

// sortedKeys are a map's keys in order. There are few, and package slices would be larger than an
// agent can afford.
func sortedKeys[V any](m map[string]V) (keys []string) {
	for k := range m {
		keys = insert(keys, k)
	}
	return keys
}

// insert puts a text into a sorted list, unless it is there.
func insert(list []string, s string) []string {
	i := len(list)
	for i > 0 && list[i-1] >= s {
		i--
	}
	if i < len(list) && list[i] == s {
		return list
	}
	return slices.Insert(list, i, s)
}

// SHA256 and SHA512 are hashes, in lower-case hex in messages.
type (
	SHA256 [32]byte
	SHA512 [64]byte
)

// String is the hash in hex.
func (h SHA256) String() string { return smallfmt.Hex(h[:]) }

// String is the hash in hex.
func (h SHA512) String() string { return smallfmt.Hex(h[:]) }
