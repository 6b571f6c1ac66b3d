// Package cli is what vmlatch, latchkey and swtee share as command-line
// programs: how they print, fail, complete and explain themselves.
//
// The rules of the user interface: results go to standard output. Messages go to standard
// error, one line each, prefixed with the program's name, lower case, without a full stop;
// what to do next follows on lines that begin with "hint:". Commands return errors,
// [App.Main] prints them and chooses the exit code; nothing else exits.
//
// urfave/cli does the parsing. This package hides its weaknesses from users: its completion
// can run commands, it takes flags after an argument for arguments, and it prints pages of
// help for a mistyped flag.
package cli
