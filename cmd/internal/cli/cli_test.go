package cli

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	urfave "github.com/urfave/cli/v2"
)

// program is an app with one command that records what reached it.
func program() (app *App, out, errs *bytes.Buffer, got *[]string) {
	out, errs, got = &bytes.Buffer{}, &bytes.Buffer{}, &[]string{}
	app = &App{
		Name: "prog", Usage: "test", Version: "1", IO: &IO{Out: out, Err: errs, Name: "prog"},
		Synonyms: map[string]string{"labour": "work"}, Values: map[string][]string{"policy": {"strict", "lax"}},
		Topics: []Topic{
			{Name: "topic", Title: "a topic", Text: "text of the topic"},
			{Name: "file", Title: "a file", Text: "key = 1\n\nTHE REST\n\n.key = 2", Man: "prog.file.5"},
		},
		Commands: []*urfave.Command{{
			Name: "work", Usage: "do it", ArgsUsage: "FILE",
			Flags: []urfave.Flag{
				&urfave.BoolFlag{Name: "now"},
				&urfave.StringSliceFlag{Name: "entry"},
				&urfave.StringFlag{Name: "policy"},
				&urfave.DurationFlag{Name: "wait", Hidden: true},
				&urfave.IntFlag{Name: "times", Hidden: true},
				&urfave.UintFlag{Name: "count", Hidden: true},
			},
			BashComplete: func(c *urfave.Context) { _, _ = c.App.Writer.Write([]byte("one\ntwo\n")) },
			Action: func(c *urfave.Context) error {
				args, err := Args(c, "FILE")
				if err != nil {
					return err
				}
				*got = append(args, c.StringSlice("entry")...)
				if c.Bool("now") {
					*got = append(*got, "now")
				}
				if args[0] == "fail" {
					return Fail(ExitRefused, errors.New("no"), "try again")
				}
				return nil
			},
		}},
	}
	return app, out, errs, got
}

const options = "hint: \"prog work --help\" shows the options\n"

func TestTrapsOfTheParser(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		code ExitCode
		got  string // what reached the command
		errs string
	}{
		"plain":                     {args: []string{"work", "f"}, got: "f"},
		"option behind argument":    {args: []string{"work", "f", "--now"}, got: "f now"},
		"value behind argument":     {args: []string{"work", "f", "--entry", "a,b", "--entry=c"}, got: "f a,b c"},
		"slices do not split":       {args: []string{"work", "--entry", "a=b,if=virtio", "f"}, got: "f a=b,if=virtio"},
		"behind -- all is argument": {args: []string{"work", "--", "--now"}, got: "--now"},
		"unknown option": {
			[]string{"work", "--polcy", "x", "f"},
			ExitUsage, "",
			"prog: no option --polcy\nhint: did you mean --policy?\n",
		},
		"unknown command": {
			[]string{"wrk"},
			ExitUsage, "",
			"prog: no command \"wrk\"\nhint: did you mean \"prog work\"?\n",
		},
		"no command at all like it": {
			[]string{"xyz"},
			ExitUsage, "",
			"prog: no command \"xyz\"\nhint: \"prog help\" lists the commands\n",
		},
		"synonym": {
			[]string{"labour"},
			ExitUsage, "",
			"prog: no command \"labour\"\nhint: the prog command is \"prog work\"\n",
		},
		"mistyped synonym": {
			[]string{"labuor"},
			ExitUsage, "",
			"prog: no command \"labuor\"\nhint: the prog command is \"prog work\"\n",
		},
		"duration without unit": {
			[]string{"work", "f", "--wait", "30"},
			ExitUsage, "",
			"prog: --wait 30: must be a duration with its unit, such as 30s or 30m\n" + options,
		},
		"no duration": {
			[]string{"work", "f", "--wait", "soon"},
			ExitUsage, "",
			"prog: --wait soon: must be a duration, such as 30s or 2m\n" + options,
		},
		"no number": {
			[]string{"work", "f", "--times", "1.5"},
			ExitUsage, "",
			"prog: --times 1.5: must be a whole number\n" + options,
		},
		"number beyond its range": {
			[]string{"work", "f", "--times", "99999999999999999999"},
			ExitUsage, "",
			"prog: --times 99999999999999999999: must be a whole number of at most 64 bits\n" + options,
		},
		"negative number": {
			[]string{"work", "f", "--count", "-1"},
			ExitUsage, "",
			"prog: --count -1: must be a whole number, zero or more\n" + options,
		},
		"larger than any count": {
			[]string{"work", "f", "--count", "99999999999999999999"},
			ExitUsage, "",
			"prog: --count 99999999999999999999: must be a whole number of at most 64 bits\n" + options,
		},
		"missing argument": {
			[]string{"work"},
			ExitUsage, "",
			"prog: FILE is missing\nhint: usage: prog work FILE\n",
		},
		"too many arguments": {
			[]string{"work", "a", "b"},
			ExitUsage, "",
			"prog: unexpected argument \"b\"\nhint: usage: prog work FILE\n",
		},
		"error with hint": {[]string{"work", "fail"}, ExitRefused, "fail", "prog: no\nhint: try again\n"},
		"missing value": {
			[]string{"work", "--policy"},
			ExitUsage, "",
			"prog: flag needs an argument: -policy\n" + options,
		},
		"unknown topic": {
			[]string{"help", "nothing"},
			ExitUsage, "",
			"prog: no command or topic \"nothing\"\nhint: \"prog help topics\" lists the topics\n",
		},
		"mistyped topic": {
			[]string{"help", "topik"},
			ExitUsage, "",
			"prog: no command or topic \"topik\"\nhint: did you mean \"prog help topic\"?\n",
		},
		"completion of another shell": {
			[]string{"completion", "tcsh"},
			ExitUsage, "",
			"prog: unknown shell \"tcsh\": must be bash, fish or zsh\n",
		},
		"completion of a mistyped shell": {
			[]string{"completion", "bahs"},
			ExitUsage, "",
			"prog: unknown shell \"bahs\": did you mean \"bash\"?\n",
		},
		"go-style completion request": {
			[]string{"work", "--generate-bash-completion"},
			ExitUsage, "",
			"prog: no option --generate-bash-completion\n" + options,
		},
	} {
		t.Run(name, func(t *testing.T) {
			app, out, errs, got := program()
			code := app.Run(context.Background(), append([]string{"prog"}, c.args...))
			if code != c.code || strings.Join(*got, " ") != c.got || errs.String() != c.errs {
				t.Errorf("code %d, command saw %q, stderr %q, want %d, %q, %q", code, *got, errs, c.code, c.got, c.errs)
			}
			if c.code != 0 && out.Len() > 0 {
				t.Errorf("an error prints to standard output: %s", out)
			}
		})
	}
}

func TestCompletionNeverRunsACommand(t *testing.T) {
	for words, want := range map[string]string{
		"":                "work completion help",
		"w":               "work",
		"work --":         "--help --now --entry --policy",
		"work --n":        "--now",
		"work ":           "one two",
		"work t":          "two",
		"work --now t":    "two",
		"nonsense ":       "work completion help",
		"work f ":         "",
		"work --policy ":  "strict lax",
		"work --policy s": "strict",
		"work --entry ":   "",
		"completion z":    "zsh",
		"help to":         "topic",
		"--":              "--help --version",
	} {
		app, out, errs, got := program()
		app.Run(context.Background(), append([]string{"prog", "__complete"}, strings.Split(words, " ")...))
		if s := strings.Join(strings.Fields(out.String()), " "); s != want {
			t.Errorf("%q completes to %q, want %q", words, s, want)
		}
		if len(*got) > 0 || errs.Len() > 0 {
			t.Errorf("%q ran a command: %q %s", words, *got, errs)
		}
	}
}

func TestHelp(t *testing.T) {
	for args, want := range map[string]string{
		"--help":          "usage: prog COMMAND",
		"help":            "  work  do it",
		"help work":       "prog work [command options] FILE",
		"work --help":     "prog work",
		"help topic":      "text of the topic",
		"help topics":     "exit-codes",
		"help exit-codes": "130  interrupted",
		"--version":       "prog 1",
		"__man":           ".SH TOPIC",
		"help file":       "\nTHE REST\n",
		"":                "usage: prog COMMAND",
	} {
		app, out, errs, _ := program()
		code := app.Run(context.Background(), append([]string{"prog"}, strings.Fields(args)...))
		if code != 0 || !strings.Contains(out.String(), want) {
			t.Errorf("%q: code %d, %q, want %q; %s", args, code, out.String(), want, errs)
		}
	}
}

// TestManPages: a topic that has its own page is on that page only, and the program's
// page refers to it.
func TestManPages(t *testing.T) {
	page := func(args ...string) string {
		app, out, errs, _ := program()
		if code := app.Run(context.Background(), append([]string{"prog", "__man"}, args...)); code != 0 {
			t.Fatalf("__man %q: code %d, %s", args, code, errs)
		}
		return out.String()
	}
	for what, c := range map[string]struct {
		page, want string
		have       bool
	}{
		"title":            {page("prog.file.5"), ".TH PROG.FILE 5 ", true},
		"name":             {page("prog.file.5"), ".SH NAME\nprog.file \\- a file\n", true},
		"heading":          {page("prog.file.5"), "\n.SH THE REST\n", true},
		"escaped":          {page("prog.file.5"), "\n\\&.key = 2\n", true},
		"refers back":      {page("prog.file.5"), ".BR prog (1)\n", true},
		"refers":           {page(), ".BR prog.file (5)\n", true},
		"not in both":      {page(), "key = 1", false},
		"topic in program": {page(), "text of the topic", true},
	} {
		if strings.Contains(c.page, c.want) != c.have {
			t.Errorf("%s: want %q in the page: %v; got:\n%s", what, c.want, c.have, c.page)
		}
	}
	app, _, _, _ := program()
	if code := app.Run(context.Background(), []string{"prog", "__man", "nothing.5"}); code != ExitUsage {
		t.Errorf("a page that does not exist: code %d, want %d", code, ExitUsage)
	}
}

func TestInterrupted(t *testing.T) {
	app, _, errs, _ := program()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	app.Commands[0].Action = func(c *urfave.Context) error { return c.Context.Err() }
	code := app.Run(ctx, []string{"prog", "work", "f"})
	if code != ExitInterrupted || errs.String() != "prog: interrupted\n" {
		t.Errorf("code %d, %q, want %d and one line", code, errs, ExitInterrupted)
	}
}

func TestExitCodesAreUnique(t *testing.T) {
	seen := map[ExitCode]bool{}
	for _, e := range exitCodes {
		if seen[e.Code] || e.Meaning == "" {
			t.Errorf("code %d is twice or without meaning", e.Code)
		}
		seen[e.Code] = true
	}
}

func TestEscape(t *testing.T) {
	for in, want := range map[string]string{
		"plain\n\ttext ä": "plain\n\ttext ä",
		"\x1b[2J":         `\x1b[2J`,
		"a\rb\x07":        `a\x0db\x07`,
		"\xff\xfe":        `\xff\xfe`,
		"\u202e":          `\xe2\x80\xae`,
	} {
		if got := Escape(in); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}

func FuzzEscapeWriter(f *testing.F) {
	f.Add("a\x1b[0mä\r\n", 3)
	f.Fuzz(func(t *testing.T, s string, cut int) {
		var whole, parts bytes.Buffer
		w := &EscapeWriter{W: &whole}
		_, _ = w.Write([]byte(s))
		_ = w.Flush()
		w = &EscapeWriter{W: &parts}
		if cut < 0 || cut > len(s) {
			cut = 0
		}
		_, _ = w.Write([]byte(s[:cut]))
		_, _ = w.Write([]byte(s[cut:]))
		_ = w.Flush()
		if whole.String() != parts.String() {
			t.Errorf("%q cut at %d: %q, whole %q", s, cut, parts.String(), whole.String())
		}
		for _, r := range parts.String() {
			if r < 0x20 && r != '\n' && r != '\t' || r == 0x7f {
				t.Errorf("%q lets %q through", s, r)
			}
		}
	})
}
