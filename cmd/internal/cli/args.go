package cli

import (
	"slices"
	"strings"

	urfave "github.com/urfave/cli/v2"
)

// optionsFirst moves a command's options before its arguments: urfave/cli silently takes
// options after an argument for arguments. Everything after "--" stays where it is, and so
// does an option that the command does not have, which the parser then refuses.
func optionsFirst(app *urfave.App, args []string) []string {
	if len(args) < 3 {
		return args
	}
	cmd := app.Command(args[1])
	if cmd == nil {
		return args
	}
	path := 2 // the program and its command; a command may have further ones
	for path < len(args) {
		i := slices.IndexFunc(cmd.Subcommands, func(c *urfave.Command) bool { return c.HasName(args[path]) })
		if i < 0 {
			break
		}
		cmd = cmd.Subcommands[i]
		path++
	}
	var options, arguments []string
	rest := args[path:]
	for i := 0; i < len(rest); i++ {
		arg := rest[i]
		if arg == "--" { // it comes before all arguments, or it would be one
			options, arguments = append(options, arg), append(arguments, rest[i+1:]...)
			break
		}
		if len(arg) < 2 || arg[0] != '-' {
			arguments = append(arguments, arg)
			continue
		}
		if arg == "--help" || arg == "-h" { // of the command, whatever else is there
			return append(slices.Clone(args[:path]), arg)
		}
		options = append(options, arg)
		if takesValue(cmd, arg) && i+1 < len(rest) {
			i++
			options = append(options, rest[i])
		}
	}
	return slices.Concat(args[:path], options, arguments)
}

// takesValue reports whether the next word is the option's value.
func takesValue(cmd *urfave.Command, arg string) bool {
	name := strings.TrimLeft(arg, "-")
	if strings.Contains(name, "=") {
		return false
	}
	for _, f := range cmd.Flags {
		if slices.Contains(f.Names(), name) {
			doc, ok := f.(urfave.DocGenerationFlag)
			return ok && doc.TakesValue()
		}
	}
	return false
}
