package main

import (
	"errors"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher/advice"
	"github.com/vmlatch/vmlatch/launcher/fault"
)

// exitCodes are those of the kinds of errors that the launcher has.
var exitCodes = [...]struct {
	kind fault.Kind
	code cli.ExitCode
}{
	{fault.Spec, cli.ExitUsage},
	{fault.Usage, cli.ExitUsage},
	{fault.Host, cli.ExitHost},
	{fault.Refused, cli.ExitRefused},
}

// exitCode is a kind's exit code.
func exitCode(kind fault.Kind) cli.ExitCode {
	for _, row := range exitCodes {
		if row.kind == kind {
			return row.code
		}
	}
	return cli.ExitFailure
}

// explain gives an error of the launcher its exit code and hints.
func explain(err error) error {
	var done *cli.Error
	if errors.As(err, &done) {
		return err
	}
	a := advice.For(err)
	hints := a.Fixes
	if a.Cause != "" {
		hints = append([]string{"cause: " + a.Cause}, hints...)
	}
	if len(hints) == 0 && a.Kind == fault.Failure {
		return err
	}
	return cli.Fail(exitCode(a.Kind), err, hints...)
}
