package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/firmware/swtee/tcg"
	"github.com/vmlatch/vmlatch/firmware/swtee/under"
)

func run(c *urfave.Context, s *cli.IO) error {
	if c.NArg() == 0 {
		return cli.WithHint(cli.Usagef("no QEMU command line given"), `usage: swtee [OPTIONS] -- qemu-system-x86_64 …`, `"swtee --help" shows an example`)
	}
	how, err := choose(c.String("accel"), c.Bool("fake-kvm"), c.Args().Slice(), thisHost())
	if err != nil {
		return err
	}
	if c.IsSet("measure-kernel") && how.accel != accelTCG {
		return cli.Usagef("--measure-kernel works with --accel tcg only: under QEMU the kernel that is served is the one that is measured")
	}
	var faults []swtee.Fault
	for text := range strings.SplitSeq(strings.Join(c.StringSlice("fault"), ","), ",") {
		if text == "" {
			continue
		}
		f, err := swtee.ParseFault(text)
		if err != nil {
			return cli.Usagef("--%v", err)
		}
		faults = append(faults, f)
	}
	p, err := openPlatform(c)
	if err != nil {
		return err
	}
	if !c.Bool("quiet") {
		fmt.Fprintf(os.Stderr, "swtee: emulated platform, protects nothing; %s: %s\n", how.what(), how.why)
	}
	fw := swtee.NewFirmware(p, faults...)
	logger := newLogger(c.Bool("verbose"))
	finishReport := reportTo(c.String("report"), fw, logger)
	code, err := execute(c, how, fw, logger)
	if err == nil {
		err = finishReport()
	} else if e := finishReport(); e != nil {
		logger.Error("no report", "err", e)
	}
	var told *cli.Error
	switch {
	case errors.As(err, &told):
		return err
	case err != nil:
		return cli.Fail(cli.ExitCode(max(code, 1)), err)
	}
	if code != 0 {
		return &cli.Error{Code: cli.ExitCode(code), Err: fmt.Errorf("QEMU exited with code %d", code), Quiet: true}
	}
	return nil
}

func newLogger(verbose bool) *slog.Logger {
	level := slog.LevelWarn
	if verbose {
		level = slog.LevelInfo
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})).With("emulated", true)
}

func execute(c *urfave.Context, how choice, fw *swtee.Firmware, logger *slog.Logger) (int, error) {
	argv := c.Args().Slice()
	if how.accel == accelTCG {
		return tcg.Run(c.Context, tcg.Options{
			Argv: argv, Firmware: fw, MeasureKernel: c.String("measure-kernel"),
			Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Logger: logger,
		})
	}
	code, err := under.Run(c.Context, under.Options{
		Argv: argv, Firmware: fw, FakeKVM: how.fakeKVM,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Logger: logger,
	})
	if errors.Is(err, under.ErrListenerTaken) {
		return code, cli.Fail(cli.ExitFailure, err, "run swtee outside the container, or tell the runtime to use no seccomp listener; --accel tcg needs none")
	}
	return code, err
}

// reportTo writes the report whenever a launch reaches a step, and once more by
// the function that it returns.
func reportTo(file string, fw *swtee.Firmware, logger *slog.Logger) func() error {
	if file == "" {
		return func() error { return nil }
	}
	fw.RecordPages = true
	fw.Changed = func(r *swtee.Report) {
		if err := r.WriteFile(file); err != nil {
			logger.Error("no report", "err", err)
		}
	}
	return func() (err error) {
		fw.WithReport(func(r *swtee.Report) { err = r.WriteFile(file) })
		return err
	}
}
