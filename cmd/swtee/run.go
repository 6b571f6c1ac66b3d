package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/firmware/swtee/tcg"
	"github.com/vmlatch/vmlatch/firmware/swtee/under"
)

func run(c *urfave.Context, s *cli.IO) error {
	if c.NArg() == 0 {
		return cli.WithHint(cli.Usagef("no QEMU command line given"),
			`usage: swtee [OPTIONS] -- qemu-system-x86_64 …`, `"swtee --help" shows an example`)
	}
	how, err := choose(c.String("accel"), c.Bool("fake-kvm"), c.Args().Slice(), thisHost())
	if err != nil {
		return err
	}
	if c.IsSet("measure-kernel") && how.accel != accelTCG {
		return cli.Usagef("--measure-kernel works with --accel tcg only: " +
			"otherwise QEMU measures the kernel that it serves")
	}
	faults, err := parseFaults(c.StringSlice("fault"))
	if err != nil {
		return err
	}
	report, err := openReport(c.String("report"))
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	defer report.close()
	// Closing the terminal asks QEMU to end, too.
	ctx, stop := signal.NotifyContext(c.Context, syscall.SIGHUP, syscall.SIGQUIT)
	defer stop()
	if !c.Bool("quiet") {
		fmt.Fprintf(os.Stderr, "swtee: emulated platform, protects nothing; %s: %s\n", how.what(), how.why)
	}
	r := &runner{
		c: c, how: how, faults: faults, report: report,
		logger: newLogger(c.Bool("verbose")), ready: make(chan struct{}),
	}
	go r.open()
	code, err := r.execute(ctx)
	if e := r.finalReport(); err == nil {
		err = e
	} else if e != nil {
		r.logger.Error("the report was not written", "err", e)
	}
	var done *cli.Error
	switch {
	case errors.As(err, &done):
		return err
	case err != nil:
		return cli.Fail(cli.ExitCode(max(code, 1)), err)
	}
	if code != 0 {
		return &cli.Error{Code: cli.ExitCode(code), Err: fmt.Errorf("QEMU exited with code %d", code), Quiet: true}
	}
	return nil
}

// parseFaults reads the values of --fault, each of which may be a list.
func parseFaults(values []string) (faults []swtee.Fault, err error) {
	for text := range strings.SplitSeq(strings.Join(values, ","), ",") {
		if text == "" {
			continue
		}
		f, err := swtee.ParseFault(text)
		if err != nil {
			return nil, cli.Usagef("--%w", err)
		}
		faults = append(faults, f)
	}
	return faults, nil
}

func newLogger(verbose bool) *slog.Logger {
	level := slog.LevelWarn
	if verbose {
		level = slog.LevelInfo
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})).With("emulated", true)
}

// runner is one run of QEMU.
type runner struct {
	c      *urfave.Context
	how    choice
	faults []swtee.Fault
	logger *slog.Logger
	report *reportFile

	ready chan struct{} // closed once fw or err is set
	fw    *swtee.Firmware
	err   error
}

// open reads the platform's keys, which takes milliseconds, while QEMU starts.
func (r *runner) open() {
	defer close(r.ready)
	p, err := openPlatform(r.c)
	if err != nil {
		r.err = err
		return
	}
	r.fw = swtee.NewFirmware(p, r.faults...)
	if r.report != nil {
		r.fw.RecordPages = true
		r.fw.Changed = func(rep *swtee.Report) {
			if err := r.report.step(rep); err != nil {
				r.logger.Error("the report was not written", "err", err)
			}
		}
	}
}

func (r *runner) firmware() (*swtee.Firmware, error) {
	<-r.ready
	return r.fw, r.err
}

// finalReport writes the report in its final state.
func (r *runner) finalReport() (err error) {
	fw, e := r.firmware()
	if e != nil || r.report == nil {
		return nil
	}
	fw.WithReport(func(rep *swtee.Report) { err = r.report.last(rep) })
	return err
}

func (r *runner) execute(ctx context.Context) (int, error) {
	argv := r.c.Args().Slice()
	if r.how.accel == accelTCG {
		fw, err := r.firmware()
		if err != nil {
			return 1, err
		}
		stop := context.AfterFunc(ctx, fw.Stop)
		defer stop()
		return tcg.Run(ctx, tcg.Options{
			Argv: argv, Firmware: fw, MeasureKernel: r.c.String("measure-kernel"),
			Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Logger: r.logger,
		})
	}
	code, err := under.Run(ctx, under.Options{
		Argv: argv, Firmware: r.firmware, FakeKVM: r.how.fakeKVM, Places: r.report != nil || r.c.Bool("verbose"),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Logger: r.logger,
	})
	if errors.Is(err, under.ErrListenerTaken) {
		return code, cli.Fail(cli.ExitFailure, err,
			"run swtee outside the container, or tell the runtime to use no seccomp listener; --accel tcg needs none")
	}
	return code, err
}
