package main

import (
	"errors"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/igvm"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/launch"
	"github.com/vmlatch/vmlatch/firmware/sev/table"
	"github.com/vmlatch/vmlatch/firmware/tdx"
)

// advice assigns exit codes and hints to the errors of libraries. The first row that
// matches applies.
var advice = [...]struct {
	is    error
	code  cli.ExitCode
	hints []string
}{
	{sev.ErrUntrusted, cli.ExitRefused, []string{
		"a platform without AMD's signature is emulated, or not genuine",
		`to trust a test platform on purpose, name its root: --trust-root FILE ("swtee root" prints it)`,
	}},
	{sev.ErrCertificate, cli.ExitRefused, []string{"ask the host for its platform file again"}},
	{sev.ErrNoHashTable, cli.ExitUsage, []string{
		"only AmdSev builds of OVMF measure a kernel; without one, leave --kernel out",
	}},
	{sev.ErrNoFirmware, cli.ExitUsage, nil},
	{sev.ErrPolicyReserved, cli.ExitUsage, nil},
	{launch.ErrInputs, cli.ExitUsage, nil},
	{tdx.ErrFirmware, cli.ExitUsage, nil},
	{igvm.ErrFormat, cli.ExitUsage, nil},
	{igvm.ErrPlatform, cli.ExitUsage, nil},
	{ovmf.ErrFormat, cli.ExitUsage, nil},
	{table.ErrTable, cli.ExitUsage, nil},
	{errMismatch, cli.ExitRefused, nil},
	{errUnexplained, cli.ExitRefused, []string{
		"name files that may have been used instead: --other and --other-firmware",
	}},
}

// What latchkey itself refuses.
var (
	errMismatch    = errors.New("the measurement does NOT match your files")
	errUnexplained = errors.New("unexplained")
	errOwnerFile   = errors.New("owner file")
)

// adviseRefusal gives a refusal its exit code, and what helps as a hint.
func adviseRefusal(err error) error {
	e := refusal.Of(err)
	if e == nil {
		return advise(err)
	}
	return cli.Fail(cli.ExitRefused, err, e.Fix)
}

// advise applies the table to an error that has no exit code yet.
func advise(err error) error {
	var done *cli.Error
	if errors.As(err, &done) {
		return err
	}
	for _, a := range advice {
		if errors.Is(err, a.is) {
			return cli.Fail(a.code, err, a.hints...)
		}
	}
	return err
}
