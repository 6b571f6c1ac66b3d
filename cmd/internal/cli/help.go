package cli

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/firmware/nearest"
)

func (a *App) topics() []Topic {
	var codes strings.Builder
	writeExitCodes(&codes)
	return append([]Topic{{Name: "exit-codes", Title: "what the exit codes mean", Text: codes.String()}}, a.Topics...)
}

// helpCommand explains commands and topics.
func (a *App) helpCommand() *urfave.Command {
	return &urfave.Command{
		Name: "help", Usage: "explain a command or a topic", ArgsUsage: "[COMMAND | TOPIC]", Category: "help",
		BashComplete: func(c *urfave.Context) {
			for _, cmd := range a.Commands {
				fmt.Fprintln(c.App.Writer, cmd.Name)
			}
			for _, t := range a.topics() {
				fmt.Fprintln(c.App.Writer, t.Name)
			}
		},
		Action: func(c *urfave.Context) error {
			name := c.Args().First()
			switch {
			case name == "":
				return urfave.ShowAppHelp(c)
			case name == "topics":
				return a.listTopics()
			}
			found := false
			if cmd := c.App.Command(name); cmd != nil {
				if err := urfave.ShowCommandHelp(c, name); err != nil {
					return err
				}
				found = true
				fmt.Fprintln(a.IO.Out)
			}
			for _, t := range a.topics() { // also if a command has the same name
				if t.Name == name {
					_, err := fmt.Fprintf(a.IO.Out, "%s: %s\n\n%s\n", t.Name, t.Title, strings.Trim(t.Text, "\n"))
					return err
				}
			}
			if found {
				return nil
			}
			return a.unknownPage(name)
		},
	}
}

// unknownPage is the error of "help NAME" for a name that is neither a command nor a topic.
func (a *App) unknownPage(name string) error {
	var known []string
	for _, c := range a.Commands {
		known = append(known, c.Name)
	}
	for _, t := range a.topics() {
		known = append(known, t.Name)
	}
	hint := fmt.Sprintf("%q lists the topics", a.Name+" help topics")
	if near := nearest.Word(name, known); near != "" {
		hint = fmt.Sprintf("did you mean %q?", a.Name+" help "+near)
	}
	return WithHint(Usagef("no command or topic %q", name), hint)
}

// help is the overview: commands by category, in the order in which the program
// declares them.
func (a *App) help(app *urfave.App) string {
	b := &strings.Builder{}
	fmt.Fprintf(b, "%s - %s\n\nusage: %s %s\n\n%s\n", a.Name, a.Usage, a.Name, a.synopsis(), a.Long)
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	done := map[string]bool{}
	for _, first := range app.Commands {
		if first.Hidden || done[first.Category] {
			continue
		}
		done[first.Category] = true
		title := first.Category
		if title == "" {
			title = "commands"
		}
		fmt.Fprintf(t, "\n%s:\n", title)
		for _, c := range app.Commands {
			if c.Category == first.Category && !c.Hidden {
				fmt.Fprintf(t, "  %s\t%s\n", c.Name, c.Usage)
			}
		}
	}
	fmt.Fprint(t, "\noptions:\n")
	for _, f := range app.Flags {
		names, usage, _ := strings.Cut(urfave.FlagStringer(f), "\t")
		fmt.Fprintf(t, "  %s\t%s\n", names, strings.TrimSuffix(usage, " (default: false)"))
	}
	_ = t.Flush()
	fmt.Fprintf(b, "\n\"%[1]s help COMMAND\" explains a command; \"%[1]s help topics\" lists more pages.\n", a.Name)
	return strings.ReplaceAll(b.String(), "{{", "{ {") // urfave/cli treats it as a template
}

func (a *App) listTopics() error {
	t := a.IO.Table(2)
	for _, topic := range a.topics() {
		fmt.Fprintf(t, "%s\t%s\n", topic.Name, topic.Title)
	}
	return t.Flush()
}

var completionScripts = map[string]string{
	"bash": `_%[1]s() {
    local IFS=$'\n'
    COMPREPLY=($(%[1]s __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    [ ${#COMPREPLY[@]} -gt 0 ] || compopt -o default 2>/dev/null
}
complete -F _%[1]s %[1]s
`,
	"zsh": `#compdef %[1]s
_%[1]s() {
    local -a found
    found=(${(f)"$(%[1]s __complete "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    if (( ${#found} )); then compadd -a found; else _files; fi
}
compdef _%[1]s %[1]s
`,
	"fish": `function __%[1]s_complete
    %[1]s __complete (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null
end
complete -c %[1]s -a '(__%[1]s_complete)'
`,
}

func (a *App) completionCommand() *urfave.Command {
	return &urfave.Command{
		Name:         "completion",
		Usage:        "print a completion script for a shell",
		ArgsUsage:    "bash|zsh|fish",
		Category:     "help",
		BashComplete: func(c *urfave.Context) { fmt.Fprint(c.App.Writer, "bash\nzsh\nfish\n") },
		Description:  fmt.Sprintf("Load it with, for example:\n\n   source <(%s completion bash)", a.Name),
		Action: func(c *urfave.Context) error {
			args, err := Args(c, "SHELL")
			if err != nil {
				return err
			}
			script, ok := completionScripts[args[0]]
			if !ok {
				return Choice("", "shell", args[0], slices.Sorted(maps.Keys(completionScripts)))
			}
			_, err = fmt.Fprintf(a.IO.Out, script, a.Name)
			return err
		},
	}
}

// complete prints the words that may replace the last of args. It walks the declarations
// and never runs an action. If it prints none, the shell offers files.
func (a *App) complete(w io.Writer, app *urfave.App, args []string) error {
	if len(args) == 0 {
		args = []string{""}
	}
	last := args[len(args)-1]
	commands, flags := app.Commands, app.Flags
	var current *urfave.Command
	given := 0      // arguments of the command
	valueOf := ""   // the option whose value the last word is
	behind := false // after a "--"
	for _, word := range args[:len(args)-1] {
		switch {
		case valueOf != "":
			valueOf = ""
		case word == "--":
			behind = true
		case strings.HasPrefix(word, "-") && !behind:
			if current != nil && takesValue(current, word) {
				valueOf = strings.TrimLeft(word, "-")
			}
		default:
			i := slices.IndexFunc(commands, func(c *urfave.Command) bool { return c.Name == word })
			if i >= 0 && (current == nil || len(current.Subcommands) > 0) {
				current = commands[i]
				commands, flags = current.Subcommands, current.Flags
			} else {
				given++
			}
		}
	}
	var words []string
	switch {
	case valueOf != "":
		words = a.Values[valueOf]
	case strings.HasPrefix(last, "-") && !behind:
		words = []string{"--help"}
		for _, f := range flags {
			if v, ok := f.(urfave.VisibleFlag); ok && !v.IsVisible() || f.Names()[0] == "help" {
				continue
			}
			words = append(words, "--"+f.Names()[0])
		}
	case current == nil || len(commands) > 0:
		for _, c := range commands {
			if !c.Hidden {
				words = append(words, c.Name)
			}
		}
	case current.BashComplete != nil && (given == 0 || strings.Contains(current.ArgsUsage, "…")):
		words = completeArguments(current)
	}
	for _, word := range words {
		if strings.HasPrefix(word, last) {
			if _, err := fmt.Fprintln(w, word); err != nil {
				return err
			}
		}
	}
	return nil
}

// completeArguments asks a command for its arguments, such as names of VMs.
func completeArguments(c *urfave.Command) []string {
	var b strings.Builder
	app := &urfave.App{Writer: &b}
	c.BashComplete(urfave.NewContext(app, nil, nil))
	return strings.Fields(b.String())
}
