package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/nearest"
	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/firmware/swtee/tcg"
	"github.com/vmlatch/vmlatch/firmware/swtee/twin"
	"github.com/vmlatch/vmlatch/firmware/swtee/under"
)

func run(c *urfave.Context, s *cli.IO) error {
	if c.NArg() == 0 {
		return cli.WithHint(cli.Usagef("no QEMU command line given"),
			`usage: swtee [OPTIONS] -- qemu-system-x86_64 …`, `"swtee --help" shows an example`)
	}
	if err := mistyped(c); err != nil {
		return err
	}
	how, err := choose(c.String("accel"), c.Bool("fake-kvm"), c.Args().Slice(), thisHost())
	if err != nil {
		return err
	}
	if c.IsSet("measure-kernel") && how.accel != accelTCG && how.accel != accelTwin {
		return cli.Usagef("--measure-kernel works with --accel twin and tcg only: " +
			"otherwise QEMU measures the kernel that it serves")
	}
	for _, name := range []string{"measure", "any-kernel", "rtmr-profile", "twin-qemu"} {
		if c.IsSet(name) && how.accel != accelTwin {
			return cli.Usagef("--%s works with --accel twin only", name)
		}
	}
	for name, known := range map[string][]uint{"report-version": {3, 5}, "quote-version": {4, 5}} {
		if v := c.Uint(name); !slices.Contains(known, v) {
			return cli.Usagef("--%s %d: must be %d or %d", name, v, known[0], known[1])
		}
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

// mistyped fails if there is no program to run, and a command has a name like it.
func mistyped(c *urfave.Context) error {
	name := c.Args().First()
	_, err := exec.LookPath(name)
	if err == nil {
		return nil
	}
	var commands []string
	for _, cmd := range c.App.Commands {
		if !cmd.Hidden {
			commands = append(commands, cmd.Name)
		}
	}
	const notFound = 127 // as a shell's
	if hint := nearest.Hint(name, commands); strings.Contains(hint, "did you mean") {
		return cli.Fail(notFound, err, "of the commands of swtee: "+hint)
	}
	return nil // said when it is started
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
	r.fw.ReportVersion, r.fw.QuoteVersion = uint32(r.c.Uint("report-version")), uint16(r.c.Uint("quote-version"))
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
	if r.how.accel == accelTwin {
		return r.twin(ctx, argv)
	}
	code, err := under.Run(ctx, under.Options{
		Argv: argv, Firmware: r.firmware, FakeKVM: r.how.fakeKVM, Places: r.report != nil || r.c.Bool("verbose"),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Logger: r.logger,
	})
	return code, listener(err)
}

// listener says what to do where another program has the seccomp listener.
func listener(err error) error {
	if !errors.Is(err, under.ErrListenerTaken) {
		return err
	}
	return cli.Fail(cli.ExitFailure, err,
		"run swtee outside the container, or tell the runtime to use no seccomp listener",
		"for SEV, --accel tcg needs none")
}

func (r *runner) twin(ctx context.Context, argv []string) (int, error) {
	measure := map[string]string{}
	if k := r.c.String("measure-kernel"); k != "" {
		measure["kernel"] = k
	}
	for _, text := range r.c.StringSlice("measure") {
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" {
			return 2, cli.Usagef("--measure %q: must be OPTION=VALUE, such as kernel=FILE", text)
		}
		measure[strings.TrimLeft(name, "-")] = value
	}
	code, err := twin.Run(ctx, twin.Options{
		Argv: argv, Firmware: r.firmware, Measure: measure, AnyKernel: r.c.Bool("any-kernel"),
		Profile: r.c.String("rtmr-profile"), TwinQEMU: r.c.String("twin-qemu"),
		Say: func(text string) {
			if !r.c.Bool("quiet") {
				fmt.Fprintln(os.Stderr, "swtee:", text)
			}
		},
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Logger: r.logger,
	})
	if errors.Is(err, twin.ErrUsage) {
		return code, cli.Fail(cli.ExitUsage, err)
	}
	return code, listener(err)
}
