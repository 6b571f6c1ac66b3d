package luks

import (
	"bytes"
	"errors"
	"strings"
)

// A program in an initrd cannot afford package encoding/json, which is a fifth of its size, for
// the few numbers that are needed here.

var errJSON = errors.New("not JSON")

// maxDepth is how deep objects may lie in each other; those of LUKS2 lie five deep.
const maxDepth = 16

// scanner walks through JSON and collects one kind of value.
type scanner struct {
	b     []byte
	path  [maxDepth]string // the keys of the objects that are open
	depth int
	found []string
}

// segmentOffsets are the texts at segments.*.offset.
func segmentOffsets(b []byte) ([]string, error) {
	s := &scanner{b: b}
	if err := s.value(); err != nil {
		return nil, err
	}
	if s.space(); len(s.b) > 0 {
		return nil, errJSON
	}
	return s.found, nil
}

func (s *scanner) space() { s.b = bytes.TrimLeft(s.b, " \t\r\n") }

// take reads a character, if it is next.
func (s *scanner) take(c byte) bool {
	if s.space(); len(s.b) > 0 && s.b[0] == c {
		s.b = s.b[1:]
		return true
	}
	return false
}

func (s *scanner) value() error {
	if s.space(); len(s.b) == 0 {
		return errJSON
	}
	switch s.b[0] {
	case '{':
		return s.members('{', '}')
	case '[':
		return s.members('[', ']')
	case '"':
		text, err := s.text()
		if err == nil && s.depth == 3 && s.path[0] == "segments" && s.path[2] == "offset" {
			s.found = append(s.found, text)
		}
		return err
	}
	n := 0
	for n < len(s.b) && strings.IndexByte(",]} \t\r\n", s.b[n]) < 0 {
		n++
	}
	if n == 0 || n == len(s.b) {
		return errJSON
	}
	s.b = s.b[n:] // a number or a word
	return nil
}

// members reads what an object or an array holds.
func (s *scanner) members(open, end byte) error {
	if !s.take(open) || s.depth == maxDepth {
		return errJSON
	}
	s.depth++
	defer func() { s.depth-- }()
	if s.take(end) {
		return nil
	}
	for {
		s.path[s.depth-1] = "[]"
		if open == '{' {
			s.space()
			key, err := s.text()
			if err != nil || !s.take(':') {
				return errJSON
			}
			s.path[s.depth-1] = key
		}
		if err := s.value(); err != nil {
			return err
		}
		if s.take(end) {
			return nil
		}
		if !s.take(',') {
			return errJSON
		}
	}
}

// text reads a text. Escapes stay as they are: no key or number that counts has any.
func (s *scanner) text() (string, error) {
	if len(s.b) == 0 || s.b[0] != '"' {
		return "", errJSON
	}
	for i := 1; i < len(s.b); i++ {
		switch s.b[i] {
		case '\\':
			i++
		case '"':
			text := string(s.b[1:i])
			s.b = s.b[i+1:]
			return text, nil
		}
	}
	return "", errJSON
}
