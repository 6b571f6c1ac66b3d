package cli

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/firmware/nearest"
)

// usageError replaces the help pages that urfave/cli prints on an error.
func (a *App) usageError(c *urfave.Context, err error, _ bool) error {
	text := err.Error()
	hints := []string{fmt.Sprintf("%q shows the options", strings.TrimSpace(a.commandName(c)+" --help"))}
	if name, ok := strings.CutPrefix(text, "flag provided but not defined: -"); ok {
		name = strings.TrimLeft(name, "-")
		text = "no option " + dashed(name)
		if a.commandName(c) == a.Name {
			hints = append(hints,
				fmt.Sprintf("options of a command stand behind it: %s COMMAND %s", a.Name, dashed(name)))
		}
		if c.Command != nil {
			if near := nearest.Word(name, flagNames(c.Command.Flags)); near != "" {
				hints = []string{fmt.Sprintf("did you mean --%s?", near)}
			}
		}
	}
	if says := wrongValue(c, text); says != "" {
		text = says
	}
	return Fail(ExitUsage, errors.New(text), hints...)
}

// dashed is an option as it is typed.
func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// wrongValue rewrites the parser's message, such as "invalid value "30" for flag -timeout:
// parse error", for users: it states what the option accepts.
func wrongValue(c *urfave.Context, text string) string {
	var value, name string
	if n, _ := fmt.Sscanf(text, "invalid value %q for flag -%s", &value, &name); n != 2 || c.Command == nil {
		return ""
	}
	name = strings.TrimSuffix(name, ":")
	for _, f := range c.Command.Flags {
		if !slices.Contains(f.Names(), name) {
			continue
		}
		if kind := kindOf(f, value); kind != "" {
			return fmt.Sprintf("--%s %s: must be %s", name, value, kind)
		}
	}
	return ""
}

// kindOf describes the values that an option accepts, if that is not just text.
func kindOf(f urfave.Flag, value string) string {
	number, err := strconv.ParseFloat(value, 64)
	tooLarge := err == nil && math.Abs(number) > math.MaxInt64
	switch f.(type) {
	case *urfave.DurationFlag:
		if err == nil && number > 0 {
			return fmt.Sprintf("a duration with its unit, such as %[1]ss or %[1]sm", value)
		}
		return "a duration, such as 30s or 2m"
	case *urfave.IntFlag, *urfave.Int64Flag:
		if tooLarge {
			return "a whole number of at most 64 bits"
		}
		return "a whole number"
	case *urfave.UintFlag, *urfave.Uint64Flag:
		if tooLarge {
			return "a whole number of at most 64 bits"
		}
		return "a whole number, zero or more"
	}
	return ""
}

func (a *App) commandName(c *urfave.Context) string {
	if c.Command == nil || c.Command.Name == "" || c.Command.Name == a.Name {
		return a.Name
	}
	return path(c)
}

// Count writes a number of things: 1 part, 2 parts.
func Count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (a *App) unknownCommand(name string) error {
	var names []string
	for _, c := range a.Commands {
		names = append(names, c.Name)
	}
	names = append(names, slices.Sorted(maps.Keys(a.Synonyms))...)
	hint := fmt.Sprintf("%q lists the commands", a.Name+" help")
	near := nearest.Word(strings.TrimLeft(name, "-"), names)
	if other := a.Synonyms[cmp.Or(near, name)]; other != "" {
		hint = fmt.Sprintf("the %s command is %q", a.Name, a.Name+" "+other)
	} else if near != "" {
		hint = fmt.Sprintf("did you mean %q?", a.Name+" "+near)
	}
	return Fail(ExitUsage, fmt.Errorf("no command %q", name), hint)
}

func flagNames(flags []urfave.Flag) []string {
	var names []string
	for _, f := range flags {
		names = append(names, f.Names()...)
	}
	sort.Strings(names)
	return names
}

// Args checks the number of positional arguments.
func Args(c *urfave.Context, names ...string) ([]string, error) {
	got := c.Args().Slice()
	if len(got) < len(names) {
		return nil, Fail(ExitUsage, fmt.Errorf("%s is missing", names[len(got)]),
			fmt.Sprintf("usage: %s %s", path(c), c.Command.ArgsUsage))
	}
	if len(got) > len(names) {
		return nil, Fail(ExitUsage, fmt.Errorf("unexpected argument %q", got[len(names)]),
			fmt.Sprintf("usage: %s %s", path(c), c.Command.ArgsUsage))
	}
	return got, nil
}

// Choice is the error for a value that must be one of a list. The value belongs to an
// option or, if that is "", to an argument.
func Choice(option, what, value string, known []string) error {
	err := nearest.Unknown(what, value, known)
	if option == "" {
		return Fail(ExitUsage, err)
	}
	return Usagef("--%s: %w", option, err)
}

// Need returns an error if an option that a command requires is missing.
func Need(c *urfave.Context, options ...string) error {
	for _, name := range options {
		if c.String(name) == "" {
			return Fail(ExitUsage, fmt.Errorf("--%s is needed", name), Examples(c))
		}
	}
	return nil
}

// Examples is the hint that refers to a command's examples.
func Examples(c *urfave.Context) string {
	return fmt.Sprintf("\"%s --help\" shows an example", path(c))
}

// path is the program and the command with those above it, as a person types them.
func path(c *urfave.Context) string {
	words := []string{c.App.Name}
	for _, x := range slices.Backward(c.Lineage()) {
		if x.Command != nil && x.Command.Name != "" && !slices.Contains(words, x.Command.Name) {
			words = append(words, x.Command.Name)
		}
	}
	return strings.Join(words, " ")
}
