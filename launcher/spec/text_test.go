package spec

import (
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/vmlatch/vmlatch/launcher/fault"
)

func utf16Of(text string, order func([]byte, uint16) []byte) string {
	var b []byte
	for _, u := range utf16.Encode([]rune(text)) {
		b = order(b, u)
	}
	return string(b)
}

// TestEditors: what editors put into a file next to its text is skipped, or named as what
// it is.
func TestEditors(t *testing.T) {
	little := func(b []byte, u uint16) []byte { return append(b, byte(u), byte(u>>8)) }
	big := func(b []byte, u uint16) []byte { return append(b, byte(u>>8), byte(u)) }
	const line = "text = \"x\"\n"
	for name, c := range map[string]struct {
		text, want string
		row, col   int
	}{
		"byte order mark":       {"\uFEFF" + line, "", 0, 0},
		"Windows' line ends":    {"text = \"x\"\r\n", "", 0, 0},
		"double quotes":         {"text = “x”\n", `typographic quote '“' (U+201C): write a plain one: "`, 1, 8},
		"single quotes":         {"\n\ntext = ‘x’\n", `typographic quote '‘' (U+2018)`, 3, 8},
		"quotes behind a mark":  {"\uFEFFtext = „x“\n", `typographic quote '„' (U+201E)`, 1, 8},
		"a no-break space":      {"text\u00a0= \"x\"\n", `special blank '\u00a0' (U+00A0): write a plain one`, 1, 5},
		"a zero-width space":    {"\u200btext = \"x\"\n", "invisible character '\\u200b' (U+200B): remove it", 1, 1},
		"an equals sign":        {"text ＝ \"x\"\n", "wide equals sign '＝' (U+FF1D)", 1, 6},
		"a letter in a key":     {"téxt = \"x\"\n", "unexpected character 'é' (U+00E9)", 1, 2},
		"letters in a value":    {"text = \"“é”\"\n", "", 0, 0},
		"UTF-16, little endian": {utf16Of("\uFEFF"+line, little), "is text in UTF-16: save it as UTF-8", 1, 1},
		"UTF-16, big endian":    {utf16Of("\uFEFF"+line, big), "is text in UTF-16", 1, 1},
		"UTF-16 without a mark": {utf16Of(line, little), "is text in UTF-16", 1, 1},
		"Latin-1":               {"# \xe9\n" + line, "is not text in UTF-8", 1, 3},
		"cut off in a letter":   {line + "# \xc3", "is not text in UTF-8", 2, 3},
	} {
		var got struct {
			Text string `toml:"text"`
		}
		_, err := decodeStrict([]byte(strings.TrimPrefix(c.text, "\uFEFF")), "f", &got)
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v, want nil", name, err)
			}
			continue
		}
		e := fault.As(err)
		if e == nil || !strings.Contains(err.Error(), c.want) || e.Line != c.row || e.Column != c.col {
			t.Errorf("%s: %v, want %q at %d:%d", name, err, c.want, c.row, c.col)
		}
	}
}
