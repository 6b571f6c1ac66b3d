package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	urfave "github.com/urfave/cli/v2"
)

// App is one program.
type App struct {
	Name     string
	Usage    string // one line
	Long     string
	Version  string
	Commands []*urfave.Command
	Topics   []Topic // for "help TOPIC"
	// Explain adds an exit code and hints to a library's error.
	Explain func(error) error
	// Action runs when no command is given; nil prints the help.
	Action urfave.ActionFunc
	Flags  []urfave.Flag
	IO     *IO
	// Synonyms are the names that other programs use for a command: "list" is "ps".
	Synonyms map[string]string
	// Values are the values that an option can have, by its name, for completion.
	Values map[string][]string
	// Prepare, if not nil, returns the context that commands get; an error ends the
	// program before any runs.
	Prepare func(context.Context) (context.Context, error)
	// Interruptible programs have nothing to clean up: a signal ends them at once.
	Interruptible bool
}

// Topic is a help page that does not belong to a command.
type Topic struct {
	Name  string
	Title string
	Text  string // a line of capitals between blank lines is a section's heading
	// Man is the name of the topic's own manual page, such as "vmlatch.toml.5"; "" puts
	// the text into the program's page.
	Man string
}

// Start runs the program of this process. It answers "--version" before build
// declares the commands: scripts ask for it often, and it takes a third of the time.
func Start(name string, build func(*IO) *App) ExitCode {
	s := System(name)
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		if err := printVersion(s, Version()); err != nil {
			return s.Fail(err)
		}
		return ExitOK
	}
	return build(s).Main(os.Args)
}

func printVersion(s *IO, version string) error {
	_, err := io.WriteString(s.Out, s.Name+" "+version+"\n")
	return err
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
	if a.Prepare != nil {
		ctx, err = a.Prepare(ctx)
	}
	if err != nil {
		return a.IO.Fail(err)
	}
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
	fail := a.IO.Fail
	if wantsJSON(args) {
		fail = a.IO.failJSON
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return fail(&Error{Code: ExitInterrupted, Err: errors.New("interrupted")})
	}
	return fail(err)
}

// wantsJSON reports whether a command line asks for JSON: then an error is JSON, too.
func wantsJSON(args []string) bool {
	for _, arg := range args {
		switch arg {
		case "--json", "-json", "--json=true":
			return true
		case "--":
			return false
		}
	}
	return false
}

func (a *App) urfave(args []string) *urfave.App {
	commands := a.commands(args)
	app := &urfave.App{
		Name: a.Name, Usage: a.Usage, Description: a.Long,
		Commands: commands, HideHelpCommand: true, HideVersion: true,
		Flags: append(slices.Clone(a.Flags), &urfave.BoolFlag{Name: "version", Usage: "print the version"},
			// urfave/cli leaves its own out because there is a command "help".
			&urfave.BoolFlag{Name: "help", Aliases: []string{"h"}, Usage: "show this help"}),

		Writer: a.IO.Out, ErrWriter: a.IO.Err,
		Compiled:                  time.Unix(0, 0), // unused; otherwise the time of the program's file
		DisableSliceFlagSeparator: true,
		ExitErrHandler:            func(*urfave.Context, error) {},
		Action: func(c *urfave.Context) error {
			switch {
			case c.Bool("help"):
				return urfave.ShowAppHelp(c)
			case c.Bool("version"):
				return printVersion(a.IO, a.Version)
			case a.Action != nil:
				return a.Action(c)
			case c.NArg() == 0:
				return urfave.ShowAppHelp(c)
			}
			return a.unknownCommand(c.Args().First())
		},
		OnUsageError: a.usageError,
	}
	asks := func(s string) bool { return strings.TrimLeft(s, "-") == "help" || s == "-h" }
	if len(args) < 2 || slices.ContainsFunc(args, asks) {
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

// commands are the program's commands or, if the arguments begin with the name of one,
// only that one and help: urfave/cli describes each flag of every command that it is given,
// which takes longer than most commands themselves. Without help it would add its own.
func (a *App) commands(args []string) []*urfave.Command {
	if len(args) > 1 {
		for i, c := range a.Commands {
			if c.HasName(args[1]) {
				return []*urfave.Command{a.Commands[i], a.helpCommand()}
			}
		}
	}
	return append(slices.Clone(a.Commands), a.completionCommand(), a.helpCommand(), a.manCommand())
}

func (a *App) synopsis() string {
	if a.Action != nil {
		return "[OPTIONS] -- QEMU [QEMU OPTIONS]"
	}
	return "COMMAND [OPTIONS] [ARGUMENTS]"
}
