package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/spec"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// task is what --all does with one VM, and how that went (vmlatch.many/1).
type task struct {
	Name   string       `json:"name,omitempty"`
	File   string       `json:"file,omitempty"`
	Result string       `json:"result"` // started, running, stopped, killed, removed, failed, skipped, interrupted
	Error  string       `json:"error,omitempty"`
	Hints  []string     `json:"hints,omitempty"`
	Code   cli.ExitCode `json:"exit-code,omitempty"`
}

func jobsFlag() urfave.Flag {
	return &urfave.IntFlag{
		Name:    "jobs",
		Aliases: []string{"j"},
		Value:   4,
		Usage:   "with several VMs, work on `N` at once",
	}
}

// many does the tasks, up to jobs at once. One that fails stops no other; those that
// have not begun when the user interrupts are skipped.
func many(c *urfave.Context, s *cli.IO, tasks []*task, do func(context.Context, *cli.IO, *task) error) error {
	jobs := c.Int("jobs")
	if jobs < 1 {
		return cli.Usagef("--jobs %d: must be at least 1", jobs)
	}
	shared := s.Shared()
	queue := make(chan *task)
	var wg sync.WaitGroup
	for range min(jobs, len(tasks)) {
		wg.Go(func() {
			for t := range queue {
				if c.Context.Err() != nil {
					t.Result = "skipped"
					continue
				}
				err := do(c.Context, shared, t)
				if err != nil && c.Context.Err() != nil {
					t.Result, t.Error = "interrupted", "interrupted"
					var told *cli.Error
					if errors.As(err, &told) && told.Code == cli.ExitInterrupted {
						shared.Fail(err) // what it has left as it is
					}
					continue // the end of the command says the rest
				}
				if err != nil {
					if t.Error = err.Error(); t.Result == "" {
						t.Result = "failed"
					}
					err = explain(err)
					var told *cli.Error
					if errors.As(err, &told) {
						t.Hints = told.Hints
					}
					t.Code = shared.Fail(err)
				}
			}
		})
	}
	for _, t := range tasks {
		queue <- t
	}
	close(queue)
	wg.Wait()
	return report(c, s, tasks)
}

// report ends a command that worked on many VMs: as JSON if asked, and with the
// exit code that all failures share.
func report(c *urfave.Context, s *cli.IO, tasks []*task) error {
	if c.Bool("json") {
		if err := s.JSON(map[string]any{"schema": "vmlatch.many/1", "vms": tasks}); err != nil {
			return err
		}
	}
	count, code := map[string]int{}, cli.ExitOK
	var order []string
	for _, t := range tasks {
		if count[t.Result]++; count[t.Result] == 1 {
			order = append(order, t.Result)
		}
		if t.Code != cli.ExitOK && code != cli.ExitOK && t.Code != code {
			code = cli.ExitFailure
		} else if t.Code != cli.ExitOK {
			code = t.Code
		}
	}
	var parts []string
	for _, result := range order {
		parts = append(parts, fmt.Sprintf("%d %s", count[result], result))
	}
	if len(tasks) > 1 {
		s.Say("%s", strings.Join(parts, ", "))
	}
	if err := c.Context.Err(); err != nil {
		return err
	}
	if code != cli.ExitOK {
		return &cli.Error{Code: code, Err: errors.New("not all succeeded"), Quiet: true}
	}
	return nil
}

// startAll starts the specs that the arguments name, or with --all every spec of a
// directory.
func startAll(c *urfave.Context, l *launch) error {
	files := c.Args().Slice()
	if c.Bool("all") {
		args, err := cli.Args(c, "DIR")
		if err != nil {
			return err
		}
		if files, err = specsIn(args[0]); err != nil {
			return cli.Fail(cli.ExitUsage, err, "DIR is a directory of specs, whose names end with .toml")
		}
	}
	if c.IsSet("name") && (c.Bool("all") || len(files) > 1) {
		return cli.Usagef("--name is for one VM")
	}
	root, h, err := ownVMs(c, l.io.Say)
	if err != nil {
		return err
	}
	sweep(c.Context, l.io, root)
	var tasks []*task
	specs, broken := map[*task]*tee.Spec{}, map[*task]error{}
	by := map[string][]*task{}
	for _, f := range files {
		t := &task{File: f}
		tasks = append(tasks, t)
		specs[t], broken[t] = launcher.LoadSpec(f)
		if name := c.String("name"); name != "" && broken[t] == nil {
			specs[t], broken[t] = specs[t].Named(name)
		}
		if broken[t] == nil {
			t.Name = specs[t].Name()
			by[t.Name] = append(by[t.Name], t)
		}
	}
	for name, same := range by {
		for _, t := range same[1:] { // which of them is meant?
			broken[t] = cli.Usagef("%s: its name is %s, as that of %s", t.File, name, same[0].File)
			broken[same[0]] = cli.Usagef("%s: its name is %s, as that of %s", same[0].File, name, t.File)
		}
	}
	return many(c, l.io, tasks, func(ctx context.Context, s *cli.IO, t *task) error {
		if broken[t] != nil {
			return broken[t]
		}
		if e, err := root.Peek(t.Name); c.Bool("all") && err == nil && e != nil && e.VMHeld {
			t.Result = "running"
			return nil
		}
		p, err := planSpec(c, h, specs[t], c.Bool("emulate"))
		if err != nil {
			return err
		}
		sayChoices(s, p, c.Bool("explain-choice"))
		one := *l
		one.io = s
		rec, err := one.start(ctx, p)
		if err != nil {
			return err
		}
		t.Result = "started"
		one.say(&rec)
		return nil
	})
}

// specsIn lists the specs of a directory, by name.
func specsIn(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		name := e.Name()
		isSpec := strings.HasSuffix(name, ".toml") && !strings.HasSuffix(name, spec.DemandsSuffix)
		if isSpec && name[0] != '.' && !e.IsDir() {
			files = append(files, filepath.Join(dir, name))
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s: no spec in it", dir)
	}
	return files, nil
}

// onEach does something with several VMs: those that the arguments name, or with
// --all those that choose picks.
func onEach(
	c *urfave.Context, s *cli.IO, choose func(*rundir.Entry) bool,
	do func(context.Context, *cli.IO, rundir.Root, *task) error,
) error {
	names := c.Args().Slice()
	all := c.Bool("all")
	switch {
	case all && len(names) > 0:
		return cli.Usagef("--all and %s: name VMs, or say all", names[0])
	case !all && len(names) == 0:
		return needNames(c)
	}
	root, entries, err := listVMs(c, s, all) // what has ended matters only to who chooses
	if err != nil {
		return err
	}
	tasks := []*task{}
	for _, name := range names {
		tasks = append(tasks, &task{Name: name})
	}
	for _, e := range entries {
		if all && choose(e) {
			tasks = append(tasks, &task{Name: e.Name})
		}
	}
	if len(tasks) == 0 {
		s.Say("no VM to work on")
	}
	defer sweep(detached(c.Context), s, root)
	return many(c, s, tasks, func(ctx context.Context, s *cli.IO, t *task) error { return do(ctx, s, root, t) })
}

// needNames refuses a command line without any NAME.
func needNames(c *urfave.Context) error {
	if c.NArg() > 0 {
		return nil
	}
	_, err := cli.Args(c, "NAME")
	return err
}

// oneByOne does something with each NAME in turn, and goes on when one fails. The exit code
// is the first failure's.
func oneByOne(c *urfave.Context, s *cli.IO, do func(name string) error) error {
	if c.NArg() == 1 {
		return do(c.Args().First())
	}
	var codes []cli.ExitCode
	for _, name := range c.Args().Slice() {
		err := do(name)
		if c.Context.Err() != nil {
			return err
		}
		if err != nil {
			codes = append(codes, s.Fail(explain(err)))
		}
	}
	if len(codes) == 0 {
		return nil
	}
	return cli.Fail(codes[0], fmt.Errorf("%d of %d failed", len(codes), c.NArg()))
}
