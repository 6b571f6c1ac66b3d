package main

import (
	"fmt"
	"regexp"
	"strings"
)

// reasons are patterns of which one must match a skip's reason from its beginning.
type reasons []*regexp.Regexp

// parseReasons reads a list: a comment that says why such a skip is acceptable,
// then the regular expressions that it is about, one a line.
func parseReasons(text string) (reasons, error) {
	var list reasons
	commented := false
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		switch {
		case line == "":
			commented = false
		case strings.HasPrefix(line, "#"):
			commented = true
		case !commented:
			return nil, fmt.Errorf("line %d: no comment above it says why", i+1)
		default:
			re, err := regexp.Compile(`^(?:` + line + `)`)
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", i+1, err)
			}
			if re.MatchString("") {
				return nil, fmt.Errorf("line %d: matches every reason", i+1)
			}
			list = append(list, re)
		}
	}
	return list, nil
}

func (r reasons) match(why string) bool {
	for _, re := range r {
		if re.MatchString(why) {
			return true
		}
	}
	return false
}
