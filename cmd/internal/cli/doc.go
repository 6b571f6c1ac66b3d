// Package cli is what vmlatch, latchkey and swtee share as command-line
// programs: how they print, fail, complete and explain themselves.
//
// The law of the user interface: results go to standard output; everything
// said to the user goes to standard error, one line each, prefixed with the
// program's name, lower case, without a full stop; what to do next follows on
// lines that begin with "hint:". Commands return errors, [App.Main] prints them
// and chooses the exit code; nothing else exits.
//
// urfave/cli does the parsing. What it does badly is kept away from users here:
// its completion can run commands, it takes flags behind an argument for
// arguments, and it prints pages of help for a mistyped flag.
package cli
