package main

import (
	"fmt"
	"go/scanner"
	"go/token"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	codeWidth  = 120
	proseWidth = 100
	tabWidth   = 4
	marker     = "prose: " // in a comment, before the reason
)

type finding struct {
	file string
	line int
	msg  string
}

// text is a line to check.
type text struct {
	line  int
	prose string // what the patterns look at; "" for code
	whole bool   // prose is the whole content of a string
}

func width(line string) int {
	return utf8.RuneCountInString(line) + (tabWidth-1)*strings.Count(line, "\t")
}

// tooWide leaves lines alone that no break makes narrower, such as addresses.
func tooWide(line string, most int) bool {
	if width(line) <= most {
		return false
	}
	for word := range strings.FieldsSeq(line) {
		if utf8.RuneCountInString(word) > most*2/3 || strings.Contains(word, "://") {
			return false
		}
	}
	return true
}

// report checks lines for their width, and pieces of prose for their wording.
func report(lines []string, most func(i int) int, pieces []text) []finding {
	var found []finding
	allowed := func(i int) bool { // i counts from 0
		return strings.Contains(lines[i], marker) || i > 0 && strings.Contains(lines[i-1], marker)
	}
	for i, line := range lines {
		if m := most(i); m > 0 && tooWide(line, m) && !allowed(i) {
			found = append(found, finding{line: i + 1, msg: fmt.Sprintf("%d columns, at most %d", width(line), m)})
		}
	}
	for _, p := range pieces {
		if allowed(p.line - 1) {
			continue
		}
		for _, better := range wording(p.prose, p.whole) {
			found = append(found, finding{line: p.line, msg: better})
		}
	}
	return found
}

// goSource checks code, and the comments and strings in it.
func goSource(src string) []finding {
	lines := strings.Split(src, "\n")
	if strings.HasPrefix(src, "// Code generated") {
		return nil
	}
	var pieces []text
	comments := map[int]bool{} // lines that are nothing else
	var s scanner.Scanner
	fset := token.NewFileSet()
	file := fset.AddFile("", fset.Base(), len(src))
	s.Init(file, []byte(src), func(token.Position, string) {}, scanner.ScanComments)
	for {
		pos, tok, lit := s.Scan()
		if tok == token.EOF {
			break
		}
		if tok != token.COMMENT && tok != token.STRING {
			continue
		}
		line := file.Line(pos)
		if whole, err := strconv.Unquote(lit); tok == token.STRING && err == nil && lit[0] == '"' {
			pieces = append(pieces, text{line, whole, true})
			continue
		}
		for i, part := range strings.Split(lit, "\n") {
			pieces = append(pieces, text{line + i, part, false})
			if tok == token.COMMENT && strings.HasPrefix(strings.TrimSpace(lines[line+i-1]), "/") {
				comments[line+i-1] = true
			}
		}
	}
	return report(lines, func(i int) int {
		if comments[i] && !strings.HasPrefix(strings.TrimSpace(lines[i]), "//go:") {
			return proseWidth
		}
		return codeWidth
	}, pieces)
}

// markdown checks everything but tables and code blocks.
func markdown(src string) []finding {
	lines := strings.Split(src, "\n")
	var pieces []text
	prose := make([]bool, len(lines))
	fenced := false
	for i, line := range lines {
		trimmed := strings.TrimSpace(line)
		if strings.HasPrefix(trimmed, "```") {
			fenced = !fenced
			continue
		}
		code := fenced || strings.HasPrefix(line, "    ") || strings.HasPrefix(line, "\t")
		if code {
			continue
		}
		prose[i] = !strings.HasPrefix(trimmed, "|")
		pieces = append(pieces, text{i + 1, line, false})
	}
	return report(lines, func(i int) int {
		if prose[i] {
			return proseWidth
		}
		return 0
	}, pieces)
}

// helpText checks all lines.
func helpText(src string) []finding {
	lines := strings.Split(src, "\n")
	pieces := make([]text, len(lines))
	for i, line := range lines {
		pieces[i] = text{i + 1, line, false}
	}
	return report(lines, func(int) int { return proseWidth }, pieces)
}
