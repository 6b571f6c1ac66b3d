package main

import "regexp"

// patterns are wordings that are not idiomatic English, or not as Go's
// documentation has them.
var patterns = []struct {
	re     *regexp.Regexp
	except *regexp.Regexp // that is fine, where it matches at the same place
	better string
	whole  bool // only where it is all that a string says
}{
	{
		re: regexp.MustCompile(`(?i)(?:\w+ )?\b(?:is|are|was|were) no \w+`),
		except: regexp.MustCompile(
			`(?i)^there |no (?:longer|more|less|fewer|later|earlier|such|need|use|way|doubt)\b`,
		),
		better: "“is no X”: “is not a X”",
	},
	{re: regexp.MustCompile(`(?i)\banother one\b`), better: "“another one”: “differs”, “a different one”"},
	{re: regexp.MustCompile(`(?i)\b(?:says?|tells?) whether\b`), better: "“says whether”: “reports whether”"},
	{
		re:     regexp.MustCompile(`(?i)(?:\w+ )?\b(?:nobody|somebody|anybody|someone|anyone|no one)\b`),
		except: regexp.MustCompile(`(?i)^user nobody`),
		better: "“nobody”, “somebody”, “anybody”: name who acts, or use the passive",
	},
	{
		re:     regexp.MustCompile(`\bof [A-Za-z-]+'s(?: own\b|[.,;:)]|$)`),
		better: "“of X's”: the plain possessive, “X's Y”",
	},
	{re: regexp.MustCompile(`(?i)\bbeside\b`), better: "“beside”: “next to”, or “besides”"},
	{re: regexp.MustCompile(`(?i)\bshall\b`), better: "“shall”: “must”, “should”, or the present tense"},
	{re: regexp.MustCompile(`(?i)\bwho(?:ever)? wants?\b`), better: "“who wants X”: “a caller that wants X”"},
	{
		re:     regexp.MustCompile(`(?i)\b(?:it|that|which) still runs\b`),
		better: "“it still runs”: “it is still running”",
	},
	{re: regexp.MustCompile(`(?i)\b(?:found|proven) right\b`), better: "“found right”: “verified”"},
	{
		re:     regexp.MustCompile(`^there (?:is|are) none$`),
		whole:  true,
		better: "“there is none” alone: say none of what",
	},
}

// wording returns what is better in a piece of prose.
func wording(s string, whole bool) []string {
	var better []string
	for _, p := range patterns {
		if p.whole && !whole {
			continue
		}
		for _, m := range p.re.FindAllString(s, -1) {
			if p.except == nil || !p.except.MatchString(m) {
				better = append(better, p.better)
				break
			}
		}
	}
	return better
}
