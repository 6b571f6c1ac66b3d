// Package nearest finds the word that a mistyped one stands for. [Unknown] is the one
// form of error for a value that must be one of a list; [Hint] is the same advice as a
// sentence of its own.
package nearest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/xrash/smetrics"
)

// Word returns the known word that a mistyped one resembles, or "" if none is near.
// Letter case does not count, and a part between hyphens stands for its word if it is
// the part of no other: "snp" is "sev-snp". Opposites are not near.
func Word(word string, known []string) string {
	lower := strings.ToLower(word)
	for _, k := range known {
		if strings.ToLower(k) == lower {
			return k
		}
	}
	known = slices.DeleteFunc(slices.Clone(known), func(k string) bool { return negated(lower) != negated(k) })
	for _, near := range []func(string, []string) string{wholeOf, typoOf, similar} {
		if k := near(lower, known); k != "" {
			return k
		}
	}
	return ""
}

// negated reports whether a word says no. The opposite of what was written is never
// suggested: "no-debug" must not lead to "debug".
func negated(word string) bool { return strings.HasPrefix(strings.ToLower(word), "no") }

// typoOf returns the known word that is at most two inserted or deleted letters away,
// which a wrong or a swapped letter is, too. Jaro-Winkler fails on such short words.
func typoOf(word string, known []string) (best string) {
	const most = 2
	least := most + 1
	for _, k := range known {
		n := smetrics.WagnerFischer(word, strings.ToLower(k), 1, 1, 2)
		common := (len(word) + len(k) - n) / 2
		if n < least && common >= 2 {
			best, least = k, n
		}
	}
	return best
}

// similar returns the best known word by urfave/cli's measure: Jaro-Winkler with its
// usual boost and prefix, and the same threshold.
func similar(word string, known []string) (best string) {
	bestScore := 0.8
	for _, k := range known {
		if score := smetrics.JaroWinkler(word, strings.ToLower(k), 0.7, 4); score > bestScore {
			best, bestScore = k, score
		}
	}
	return best
}

// wholeOf returns the only known word that has part between its hyphens.
func wholeOf(part string, known []string) (whole string) {
	for _, k := range known {
		for p := range strings.SplitSeq(strings.ToLower(k), "-") {
			if p != part {
				continue
			}
			if whole != "" && whole != k {
				return ""
			}
			whole = k
		}
	}
	return whole
}

// Hint asks whether the nearest known word was meant; "" if none is near.
func Hint(word string, known []string) string {
	if near := Word(word, known); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	return ""
}

// Error is a word that is not one of a list.
type Error struct {
	What  string // what the word should name, such as "technology"
	Word  string
	Known []string
}

// Unknown makes an error of a word that is not known. The last of known may describe
// further values, such as "a number".
func Unknown(what, word string, known []string) *Error {
	return &Error{What: what, Word: word, Known: known}
}

func (e *Error) Error() string {
	hint := Hint(e.Word, e.Known)
	if hint == "" {
		hint = "must be " + List(e.Known)
	}
	return fmt.Sprintf("unknown %s %q: %s", e.What, e.Word, hint)
}

// List joins words as in "a, b or c".
func List(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}
