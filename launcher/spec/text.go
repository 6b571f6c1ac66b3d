package spec

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"
)

// plainText is a file's text as TOML wants it: without the byte order mark that some
// editors write. why, if not "", says what else it is, and offset where that begins.
func plainText(b []byte) (text []byte, why string, offset int) {
	const utf16 = "is text in UTF-16: save it as UTF-8"
	text = bytes.TrimPrefix(b, []byte("\uFEFF"))
	head := text[:min(len(text), 512)]
	switch {
	case bytes.HasPrefix(text, []byte{0xff, 0xfe}), bytes.HasPrefix(text, []byte{0xfe, 0xff}):
		return text, utf16, 0
	case bytes.Count(head, []byte{0}) > len(head)/4: // every other byte of most texts
		return text, utf16, 0
	case !utf8.Valid(text):
		for offset < len(text) {
			r, n := utf8.DecodeRune(text[offset:])
			if r == utf8.RuneError && n == 1 {
				break
			}
			offset += n
		}
		return text, "is not text in UTF-8: save it as that", offset
	}
	return text, "", 0
}

// lookalikes are characters that editors put in the place of those that TOML knows.
var lookalikes = []struct{ chars, what, write string }{
	{"“”„‟«»", "typographic quote", `write a plain one: "`},
	{"‘’‚‛‹›", "typographic quote", `write a plain one: " or '`},
	{"\u00a0\u2007\u202f\u2009\u200a\u3000", "special blank", "write a plain one"},
	{"\u200b\u200c\u200d\u2060\ufeff", "invisible character", "remove it"},
	{"＝", "wide equals sign", "write a plain one: ="},
	{"–—−", "typographic dash", "write a plain one: -"},
	{"［］｛｝", "wide bracket", "write a plain one"},
}

// unexpected describes the character at which TOML's grammar ends, if it is not one of
// ASCII's: the parser takes its first byte for a character.
func unexpected(text []byte) string {
	r, _ := utf8.DecodeRune(text)
	if r < utf8.RuneSelf || r == utf8.RuneError {
		return ""
	}
	for _, l := range lookalikes {
		if strings.ContainsRune(l.chars, r) {
			return fmt.Sprintf("%s %q (%U): %s", l.what, r, r, l.write)
		}
	}
	return fmt.Sprintf("unexpected character %q (%U)", r, r)
}
