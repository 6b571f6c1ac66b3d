// Command proselint checks the width of lines and the wording of prose.
//
//	proselint PATH...
//
// Code has at most 120 columns, prose at most 100: comments in Go, Markdown, and help
// texts. A tab counts as four. Long words such as addresses, tables and code blocks
// of Markdown are left alone. Comments, strings, Markdown and help texts are compared
// with a table of patterns that are not idiomatic English.
//
// A line that has to be as it is carries a marker with the reason, on the line itself
// or above it: "prose: REASON" in a comment.
package main

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	summary := flag.Bool("summary", false, "print only how much each directory has")
	flag.Parse()
	found, err := check(flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "proselint:", err)
		os.Exit(2)
	}
	if *summary {
		printSummary(found)
	} else {
		for _, f := range found {
			fmt.Printf("%s:%d: %s\n", f.file, f.line, f.msg)
		}
	}
	if len(found) > 0 {
		fmt.Printf("%d lines to mend\n", len(found))
		os.Exit(1)
	}
}

func printSummary(found []finding) {
	counts := map[string]int{}
	for _, f := range found {
		counts[filepath.Dir(f.file)]++
	}
	dirs := make([]string, 0, len(counts))
	for d := range counts {
		dirs = append(dirs, d)
	}
	slices.Sort(dirs)
	for _, d := range dirs {
		fmt.Printf("%5d %s\n", counts[d], d)
	}
}

func check(paths []string) ([]finding, error) {
	var found []finding
	for _, path := range paths {
		err := filepath.WalkDir(path, func(file string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() {
				if name := d.Name(); name == "testdata" || len(name) > 1 && name[0] == '.' && name != ".." {
					return fs.SkipDir
				}
				return nil
			}
			lint := linter(file)
			if lint == nil {
				return nil
			}
			b, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			for _, f := range lint(string(b)) {
				f.file = file
				found = append(found, f)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// linter is how a file is read; nil for files of other kinds.
func linter(file string) func(text string) []finding {
	switch {
	case strings.HasSuffix(file, ".go"):
		return goSource
	case strings.HasSuffix(file, ".md"):
		return markdown
	case strings.HasSuffix(file, ".txt") && filepath.Base(filepath.Dir(file)) == "topics":
		return helpText
	}
	return nil
}
