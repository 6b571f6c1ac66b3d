package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	urfave "github.com/urfave/cli/v2"
)

// manCommand writes the program's manual pages from its commands and topics;
// packages call it. Without an argument it writes the program's own page, in section 1,
// otherwise the page with that name, which belongs to a topic.
func (a *App) manCommand() *urfave.Command {
	return &urfave.Command{
		Name: "__man", Hidden: true,
		Action: func(c *urfave.Context) error {
			b := &strings.Builder{}
			if page := c.Args().First(); page == "" {
				a.writeMan(b, c.App)
			} else if err := a.writeTopicMan(b, page); err != nil {
				return err
			}
			_, err := io.WriteString(a.IO.Out, b.String())
			return err
		},
	}
}

// writeManCommands writes commands, and those that they have, whose names begin with theirs.
func writeManCommands(w io.Writer, path string, commands []*urfave.Command) {
	for _, c := range commands {
		if c.Hidden {
			continue
		}
		fmt.Fprintf(w, ".SS %s%s %s\n%s\n", roff(path), roff(c.Name), roff(c.ArgsUsage), roff(c.Usage))
		if c.Description != "" {
			fmt.Fprintf(w, ".PP\n.nf\n%s\n.fi\n", roff(c.Description))
		}
		writeManFlags(w, own(c.Flags))
		writeManCommands(w, path+c.Name+" ", c.Subcommands)
	}
}

func (a *App) writeMan(w io.Writer, app *urfave.App) {
	a.writeManTitle(w, a.Name+".1", a.Usage)
	fmt.Fprintf(w, ".SH SYNOPSIS\n.B %s\n%s\n", a.Name, roff(a.synopsis()))
	if a.Long != "" {
		fmt.Fprintf(w, ".SH DESCRIPTION\n.nf\n%s\n.fi\n", roff(a.Long))
	}
	fmt.Fprintln(w, ".SH COMMANDS")
	writeManCommands(w, "", app.Commands)
	if common := shared(app.Commands); len(common) > 0 {
		fmt.Fprint(w, ".SH COMMON OPTIONS\nMost commands also accept these.\n")
		writeManFlags(w, common)
	}
	if a.Action != nil {
		fmt.Fprintln(w, ".SH OPTIONS")
		writeManFlags(w, a.Flags)
	}
	for _, t := range a.topics() {
		if t.Man != "" {
			continue
		}
		title := strings.ToUpper(t.Name)
		if t.Name == "exit-codes" {
			title = "EXIT STATUS" // as in man-pages(7)
		}
		text := roff(strings.Trim(t.Text, "\n"))
		fmt.Fprintf(w, ".SH %s\n%s\n.PP\n.nf\n%s\n.fi\n", roff(title), roff(t.Title), text)
	}
	a.writeSeeAlso(w, a.Name+".1")
}

// writeTopicMan writes a topic's own page.
func (a *App) writeTopicMan(w io.Writer, page string) error {
	i := slices.IndexFunc(a.Topics, func(t Topic) bool { return t.Man == page })
	if i < 0 {
		return Usagef("no manual page %q", page)
	}
	t := a.Topics[i]
	a.writeManTitle(w, page, t.Title)
	fmt.Fprint(w, ".SH DESCRIPTION\n.nf\n")
	for block := range strings.SplitSeq(strings.Trim(t.Text, "\n"), "\n\n") {
		if isHeading(block) {
			fmt.Fprintf(w, ".fi\n.SH %s\n.nf\n", roff(block))
		} else {
			fmt.Fprintf(w, "%s\n\n", roff(block))
		}
	}
	fmt.Fprintln(w, ".fi")
	a.writeSeeAlso(w, page)
	return nil
}

// writeManTitle begins the page NAME.SECTION.
func (a *App) writeManTitle(w io.Writer, page, title string) {
	name, section := splitPage(page)
	fmt.Fprintf(w, ".TH %s %s \"\" \"%s %s\"\n", strings.ToUpper(name), section, a.Name, a.Version)
	fmt.Fprintf(w, ".SH NAME\n%s \\- %s\n", name, roff(title))
}

// writeSeeAlso ends a page with references to the program's other pages.
func (a *App) writeSeeAlso(w io.Writer, page string) {
	var others []string
	for _, other := range append([]string{a.Name + ".1"}, manPages(a.Topics)...) {
		if other != page {
			name, section := splitPage(other)
			others = append(others, fmt.Sprintf(".BR %s (%s)", name, section))
		}
	}
	if len(others) > 0 {
		fmt.Fprintf(w, ".SH SEE ALSO\n%s\n", strings.Join(others, ",\n"))
	}
}

func manPages(topics []Topic) (pages []string) {
	for _, t := range topics {
		if t.Man != "" {
			pages = append(pages, t.Man)
		}
	}
	return pages
}

// splitPage cuts "vmlatch.toml.5" into name and section.
func splitPage(page string) (name, section string) {
	i := strings.LastIndexByte(page, '.')
	return page[:i], page[i+1:]
}

// isHeading reports whether a block of a topic is the heading of a section.
func isHeading(block string) bool {
	return block != "" && strings.Trim(block, "ABCDEFGHIJKLMNOPQRSTUVWXYZ ") == ""
}

// own returns a command's flags without those of a category, which many commands share.
func own(flags []urfave.Flag) []urfave.Flag {
	return slices.DeleteFunc(slices.Clone(flags), func(f urfave.Flag) bool { return categoryOf(f) != "" })
}

// shared returns the flags that have a category, each once.
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

// roff escapes what troff would interpret as commands.
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
