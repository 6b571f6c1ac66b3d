package main

import (
	"fmt"
	"os"
	"strings"
)

// readEquivalent reads the list of mutants that do not change behaviour. An entry
// has a comment that says why, then the file, then the line before and after:
//
//	# The loop ends there anyway.
//	firmware/ovmf/table.go
//	- if p > first {
//	+ if p >= first {
func readEquivalent(file string) (map[string]bool, error) {
	known := map[string]bool{}
	if file == "" {
		return known, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var reason, name, before string
	for i, line := range strings.Split(string(b), "\n") {
		line = strings.TrimSpace(line)
		switch {
		case line == "":
			reason, name = "", ""
		case strings.HasPrefix(line, "#"):
			reason = line
		case strings.HasPrefix(line, "- "):
			before = line[2:]
		case strings.HasPrefix(line, "+"):
			if reason == "" || name == "" || before == "" {
				return nil, fmt.Errorf(
					"%s:%d: an entry has a comment, a file, a line with - and one with +",
					file,
					i+1,
				)
			}
			known[name+"\n"+before+"\n"+strings.TrimSpace(line[1:])] = true
			before = ""
		default:
			name = line
		}
	}
	return known, nil
}
