package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"sort"
	"strings"
	"syscall"

	urfave "github.com/urfave/cli/v2"
	"github.com/xrash/smetrics"
)

// App is one program.
type App struct {
	Name     string
	Usage    string // one line
	Long     string
	Version  string
	Commands []*urfave.Command
	Topics   []Topic // for "help TOPIC"
	// Explain turns a library's error into one with exit code and hints.
	Explain func(error) error
	// Action runs when no command is given; nil prints the help.
	Action urfave.ActionFunc
	Flags  []urfave.Flag
	IO     *IO
	// Synonyms are what other programs call a command: "list" is "ps".
	Synonyms map[string]string
	// Values are what an option can be, by its name, for completion.
	Values map[string][]string
	// Interruptible programs have nothing to clean up: a signal ends them at once.
	Interruptible bool
}

// Topic is a page of help that belongs to no command.
type Topic struct {
	Name  string
	Title string
	Text  string // a line of capitals between blank lines is a section's heading
	// Man is the topic's own manual page, such as "vmlatch.toml.5"; "" puts the
	// text into the program's page.
	Man string
}

// Main runs the program with its arguments and returns the exit code. The
// context ends at SIGINT and SIGTERM; a second signal ends the program.
func (a *App) Main(args []string) ExitCode {
	if a.Interruptible {
		return a.Run(context.Background(), args)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	return a.Run(ctx, args)
}

// Run is Main with the caller's context.
func (a *App) Run(ctx context.Context, args []string) ExitCode {
	app := a.urfave(args)
	var err error
	if len(args) > 1 && args[1] == "__complete" {
		err = a.complete(a.IO.Out, app, args[2:])
	} else {
		err = app.RunContext(ctx, optionsFirst(app, args))
	}
	if err == nil {
		return ExitOK
	}
	if a.Explain != nil {
		err = a.Explain(err)
	}
	var e *Error
	if errors.As(err, &e) && e.Quiet {
		return e.Code
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		a.IO.Say("interrupted")
		return ExitInterrupted
	}
	return a.IO.Fail(err)
}

func (a *App) urfave(args []string) *urfave.App {
	commands := append(slices.Clone(a.Commands), a.completionCommand(), a.helpCommand(), a.manCommand())
	app := &urfave.App{
		Name: a.Name, Usage: a.Usage, Description: a.Long,
		Commands: commands, HideHelpCommand: true, HideVersion: true,
		Flags: append(slices.Clone(a.Flags), &urfave.BoolFlag{Name: "version", Usage: "print the version"},
			// urfave/cli leaves its own out because there is a command "help".
			&urfave.BoolFlag{Name: "help", Aliases: []string{"h"}, Usage: "show this help"}),

		Writer: a.IO.Out, ErrWriter: a.IO.Err,
		DisableSliceFlagSeparator: true,
		ExitErrHandler:            func(*urfave.Context, error) {},
		Action: func(c *urfave.Context) error {
			switch {
			case c.Bool("help"):
				return urfave.ShowAppHelp(c)
			case c.Bool("version"):
				_, err := fmt.Fprintln(a.IO.Out, a.Name, a.Version)
				return err
			case a.Action != nil:
				return a.Action(c)
			case c.NArg() == 0:
				return urfave.ShowAppHelp(c)
			}
			return a.unknownCommand(c.Args().First())
		},
		OnUsageError: a.usageError,
	}
	if len(args) < 2 || slices.ContainsFunc(args, func(s string) bool { return strings.TrimLeft(s, "-") == "help" || s == "-h" }) {
		app.CustomAppHelpTemplate = a.help(app) // composing it takes a moment
	}
	var prepare func([]*urfave.Command)
	prepare = func(cs []*urfave.Command) {
		for _, c := range cs {
			c.HideHelpCommand = true
			c.OnUsageError = a.usageError
			for _, f := range c.Flags {
				if b, ok := f.(*urfave.BoolFlag); ok {
					b.DisableDefaultText = true // a switch is off unless it is given
				}
			}
			prepare(c.Subcommands)
		}
	}
	prepare(app.Commands)
	return app
}

func (a *App) synopsis() string {
	if a.Action != nil {
		return "[OPTIONS] -- QEMU [QEMU OPTIONS]"
	}
	return "COMMAND [OPTIONS] [ARGUMENTS]"
}

// usageError replaces the pages of help that urfave/cli prints.
func (a *App) usageError(c *urfave.Context, err error, _ bool) error {
	text := err.Error()
	hints := []string{fmt.Sprintf("%q shows the options", strings.TrimSpace(a.commandName(c)+" --help"))}
	if name, ok := strings.CutPrefix(text, "flag provided but not defined: -"); ok {
		text = fmt.Sprintf("no option --%s", strings.TrimPrefix(name, "-"))
		if c.Command != nil {
			if near := nearest(name, flagNames(c.Command.Flags)); near != "" {
				hints = []string{fmt.Sprintf("did you mean --%s?", near)}
			}
		}
	}
	// The parser's words: invalid value "30" for flag -timeout: parse error.
	var value, flag string
	if n, _ := fmt.Sscanf(text, "invalid value %q for flag -%s", &value, &flag); n == 2 && c.Command != nil {
		flag = strings.TrimSuffix(flag, ":")
		for _, f := range c.Command.Flags {
			if kind := kindOf(f); kind != "" && slices.Contains(f.Names(), flag) {
				text = fmt.Sprintf("--%s %s: must be %s", flag, value, kind)
			}
		}
	}
	return Fail(ExitUsage, errors.New(text), hints...)
}

// kindOf says what an option's value must be, if not just text.
func kindOf(f urfave.Flag) string {
	switch f.(type) {
	case *urfave.DurationFlag:
		return "a duration, such as 30s or 2m"
	case *urfave.IntFlag, *urfave.UintFlag, *urfave.Int64Flag, *urfave.Uint64Flag:
		return "a number"
	}
	return ""
}

func (a *App) commandName(c *urfave.Context) string {
	if c.Command == nil || c.Command.Name == "" || c.Command.Name == a.Name {
		return a.Name
	}
	return a.Name + " " + c.Command.Name
}

func (a *App) unknownCommand(name string) error {
	var names []string
	for _, c := range a.Commands {
		names = append(names, c.Name)
	}
	hint := fmt.Sprintf("%q lists the commands", a.Name+" help")
	if other := a.Synonyms[name]; other != "" {
		hint = fmt.Sprintf("here that is %q", a.Name+" "+other)
	} else if near := nearest(name, names); near != "" {
		hint = fmt.Sprintf("did you mean %q?", a.Name+" "+near)
	}
	return Fail(ExitUsage, fmt.Errorf("no command %q", name), hint)
}

// nearest returns the candidate that a mistyped word resembles, or "".
func nearest(word string, candidates []string) string {
	best, bestScore := "", 0.8 // urfave/cli's own measure and threshold
	for _, c := range candidates {
		if score := smetrics.JaroWinkler(strings.TrimLeft(word, "-"), c, 0.7, 4); score > bestScore {
			best, bestScore = c, score
		}
	}
	return best
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
			fmt.Sprintf("usage: %s %s %s", c.App.Name, c.Command.Name, c.Command.ArgsUsage))
	}
	if len(got) > len(names) {
		return nil, Fail(ExitUsage, fmt.Errorf("unexpected argument %q", got[len(names)]),
			fmt.Sprintf("usage: %s %s %s", c.App.Name, c.Command.Name, c.Command.ArgsUsage))
	}
	return got, nil
}
