package main

import (
	"errors"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/igvm"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/launch"
	"github.com/vmlatch/vmlatch/firmware/sev/session"
	"github.com/vmlatch/vmlatch/firmware/tdx"
)

// advise gives a library's error its exit code and hints.
func advise(err error) error {
	var done *cli.Error
	switch {
	case errors.As(err, &done):
		return err
	case errors.Is(err, sev.ErrUntrusted):
		return cli.Fail(cli.ExitRefused, err,
			"a platform without AMD's signature is emulated, or not genuine",
			`to trust a test platform on purpose, name its root: --trust-root FILE ("swtee root" prints it)`)
	case errors.Is(err, sev.ErrCertificate):
		return cli.Fail(cli.ExitRefused, err, "ask the host for its platform file again")
	case errors.Is(err, sev.ErrNoHashTable):
		return cli.Fail(cli.ExitUsage, err, "only AmdSev builds of OVMF measure a kernel; without one, leave --kernel out")
	case errors.Is(err, launch.ErrInputs), errors.Is(err, tdx.ErrFirmware), errors.Is(err, igvm.ErrFormat), errors.Is(err, igvm.ErrPlatform), errors.Is(err, sev.ErrNoFirmware):
		return cli.Fail(cli.ExitUsage, err)
	case errors.Is(err, ovmf.ErrFormat), errors.Is(err, sev.ErrPolicyReserved), errors.Is(err, session.ErrTable):
		return cli.Fail(cli.ExitUsage, err)
	}
	return err
}
