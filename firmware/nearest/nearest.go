// Package nearest finds the word that a mistyped one was probably meant to be.
package nearest

import "github.com/xrash/smetrics"

// enough is how alike two words must be, from 0 to 1, to be worth a question.
const enough = 0.8

// Word returns the known word that is most like another; "" if none is near.
func Word(word string, known []string) string {
	best, most := "", enough
	for _, k := range known {
		if alike := smetrics.JaroWinkler(word, k, 0.7, 4); alike > most {
			best, most = k, alike
		}
	}
	return best
}
