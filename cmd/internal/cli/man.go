package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	urfave "github.com/urfave/cli/v2"
)

// manCommand writes the program's man page from its commands; packages call it.
func (a *App) manCommand() *urfave.Command {
	return &urfave.Command{
		Name: "__man", Hidden: true,
		Action: func(c *urfave.Context) error {
			b := &strings.Builder{}
			a.writeMan(b, c.App)
			_, err := io.WriteString(a.IO.Out, b.String())
			return err
		},
	}
}

func (a *App) writeMan(w io.Writer, app *urfave.App) {
	fmt.Fprintf(w, ".TH %s 1 \"\" \"%s %s\"\n", strings.ToUpper(a.Name), a.Name, a.Version)
	fmt.Fprintf(w, ".SH NAME\n%s \\- %s\n", a.Name, roff(a.Usage))
	fmt.Fprintf(w, ".SH SYNOPSIS\n.B %s\n%s\n", a.Name, roff(a.synopsis()))
	if a.Long != "" {
		fmt.Fprintf(w, ".SH DESCRIPTION\n.nf\n%s\n.fi\n", roff(a.Long))
	}
	fmt.Fprintln(w, ".SH COMMANDS")
	for _, c := range app.Commands {
		if c.Hidden {
			continue
		}
		fmt.Fprintf(w, ".SS %s %s\n%s\n", roff(c.Name), roff(c.ArgsUsage), roff(c.Usage))
		if c.Description != "" {
			fmt.Fprintf(w, ".PP\n.nf\n%s\n.fi\n", roff(c.Description))
		}
		writeManFlags(w, own(c.Flags))
	}
	if common := shared(app.Commands); len(common) > 0 {
		fmt.Fprint(w, ".SH COMMON OPTIONS\nMost commands have these too.\n")
		writeManFlags(w, common)
	}
	if a.Action != nil {
		fmt.Fprintln(w, ".SH OPTIONS")
		writeManFlags(w, a.Flags)
	}
	for _, t := range a.topics() {
		title := strings.ToUpper(t.Name)
		if t.Name == "exit-codes" {
			title = "EXIT STATUS" // as man-pages(7) has it
		}
		fmt.Fprintf(w, ".SH %s\n%s\n.PP\n.nf\n%s\n.fi\n", roff(title), roff(t.Title), roff(strings.TrimSpace(t.Text)))
	}
}

// own are a command's flags without those of a category, which many commands have.
func own(flags []urfave.Flag) []urfave.Flag {
	return slices.DeleteFunc(slices.Clone(flags), func(f urfave.Flag) bool { return categoryOf(f) != "" })
}

// shared are the flags that have a category, each once.
func shared(commands []*urfave.Command) (flags []urfave.Flag) {
	for _, c := range commands {
		for _, f := range c.Flags {
			same := func(o urfave.Flag) bool { return o.Names()[0] == f.Names()[0] }
			if categoryOf(f) != "" && !slices.ContainsFunc(flags, same) {
				flags = append(flags, f)
			}
		}
	}
	return flags
}

func categoryOf(f urfave.Flag) string {
	if c, ok := f.(urfave.CategorizableFlag); ok {
		return c.GetCategory()
	}
	return ""
}

func writeManFlags(w io.Writer, flags []urfave.Flag) {
	for _, f := range flags {
		if v, ok := f.(urfave.VisibleFlag); ok && !v.IsVisible() {
			continue
		}
		names, usage, _ := strings.Cut(urfave.FlagStringer(f), "\t")
		fmt.Fprintf(w, ".TP\n.B %s\n%s\n", roff(names), roff(usage))
	}
}

// roff escapes what troff would take for commands.
func roff(s string) string {
	s = strings.ReplaceAll(s, `\`, `\e`)
	s = strings.ReplaceAll(s, "-", `\-`)
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}
