package main

import (
	"fmt"
	"strings"
	"testing"
)

func TestWording(t *testing.T) {
	for _, bad := range []string{
		"this is no file", "the kernel is another one", "Fits says whether it fits", "nobody reads it", "code of QEMU's",
		"a key of vmlatch's own", "it lies beside it", "it shall stop", "who wants it asks", "it still runs",
		"was found right", "for somebody", "no one is",
	} {
		if len(wording(bad, false)) == 0 {
			t.Errorf("%q is taken, want a finding", bad)
		}
	}
	for _, good := range []string{
		"there is no file", "it is no longer there", "besides that", "the user nobody", "the rest of QEMU's code",
		"It reports whether it fits", "a different one", "there is none of them",
	} {
		if got := wording(good, false); len(got) > 0 {
			t.Errorf("%q: %v, want nothing", good, got)
		}
	}
	if len(wording("there is none", true)) == 0 || len(wording("there is none", false)) != 0 {
		t.Error("a message of only “there is none” must be found, and no other text")
	}
}

func TestSources(t *testing.T) {
	long := strings.Repeat("word ", 23) // 115 columns
	for name, c := range map[string]struct {
		lint func(string) []finding
		text string
		want []int // lines
	}{
		"code of 120":         {goSource, "package p\n\nvar x = `" + long[:110] + "`", nil},
		"code of 121":         {goSource, "package p\n\nvar x = `" + long[:111] + "`", []int{3}},
		"tabs":                {goSource, "package p\n\n\t\t\t" + long[:109], []int{3}},
		"comment of 101":      {goSource, "package p\n\n// " + long[:98], []int{3}},
		"comment of 100":      {goSource, "package p\n\n// " + long[:96], nil},
		"address":             {goSource, "package p\n\n// https://" + strings.Repeat("x", 110), nil},
		"string":              {goSource, "package p\n\nvar x = \"nobody\"", []int{3}},
		"identifier":          {goSource, "package p\n\nvar nobody = 1", nil},
		"allowed":             {goSource, "package p\n\nvar x = \"nobody\" // prose: a user's name", nil},
		"allowed above":       {goSource, "package p\n\n// prose: a user's name\nvar x = \"nobody\"", nil},
		"comment of a block":  {goSource, "package p\n\n/*\nnobody\n*/", []int{4}},
		"markdown":            {markdown, "nobody\n" + long, []int{2, 1}},
		"markdown: table":     {markdown, "| " + long + " |", nil},
		"markdown: code":      {markdown, "```\n" + long + "\nnobody\n```\n    " + long, nil},
		"markdown: allowed":   {markdown, "nobody <!-- prose: a user -->", nil},
		"help text":           {helpText, long, []int{1}},
		"help text: in table": {helpText, "a beside b", []int{1}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []int
			for _, f := range c.lint(c.text) {
				got = append(got, f.line)
			}
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("findings at lines %v, want %v", got, c.want)
			}
		})
	}
}
