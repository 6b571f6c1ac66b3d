// Command bench measures the programs as whole processes against floors that it
// measures in the same run, and prints ratios: the machine's speed drifts, the
// ratios do not. A missed goal does not make it fail: people read its table, not programs.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/qmp"
)

func main() {
	bin := flag.String("bin", ".cache/bin", "directory of the programs")
	rounds := flag.Int("rounds", 20, "rounds of each measurement")
	file := flag.String("sha256", "", "only map and hash this file: what the benchmarks time as a bare process")
	only := flag.String("only", "", "one `step` besides the starts: version, tpm, probe, many, …")
	flag.Parse()
	if *file != "" {
		if err := hashMapped(*file); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	b := &bench{rounds: *rounds, only: *only}
	if err := b.run(*bin); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type bench struct {
	rounds int
	only   string
	bin    string
	work   string
	runDir string
	floor  string
	bare   []time.Duration // bare starts of QEMU
	rows   [][]string
}

func (b *bench) run(bin string) (err error) {
	if b.bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	if b.work, err = os.MkdirTemp("", "vmlatch-bench-*"); err != nil {
		return err
	}
	defer os.RemoveAll(b.work)
	// Run directories are on a tmpfs wherever vmlatch is installed: /run.
	if b.runDir, err = os.MkdirTemp("/dev/shm", "vmlatch-bench-*"); err != nil {
		b.runDir = filepath.Join(b.work, "run")
	}
	defer os.RemoveAll(b.runDir)
	b.floor = filepath.Join(b.work, "floor")
	const source = "integration/bench/floor/floor.c"
	if out, err := exec.Command("cc", "-O2", "-o", b.floor, source).CombinedOutput(); err != nil {
		return fmt.Errorf("the floor is a C program, which needs a compiler (package gcc): %w\n%s", err, out)
	}
	code, err := b.firmware()
	if err != nil {
		return err
	}
	spec := "memory = \"256MiB\"\naccel = \"tcg\"\ncpu = \"qemu64\"\n" +
		fmt.Sprintf("[firmware]\nimage = %q\nvars = \"vars.fd\"\n[[disk]]\nimage = \"disk.raw\"\n", code)
	if err := os.WriteFile(filepath.Join(b.work, "vm.toml"), []byte(spec), 0o600); err != nil {
		return err
	}
	small := "memory = \"32MiB\"\naccel = \"tcg\"\n"
	if err := os.WriteFile(filepath.Join(b.work, "small.toml"), []byte(small), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(b.work, "disk.raw"), make([]byte, 1<<20), 0o600); err != nil {
		return err
	}
	for _, step := range []struct {
		name string
		run  func() error
	}{
		{"version", b.version},
		{"start", b.startAndStop}, // what others are compared with
		{"tpm", b.tpm},
		{"probe", b.probe},
		{"commands", b.commands},
		{"qmp", b.roundTrip},
		{"ps", b.ps},
		{"swtee", b.swtee},
		{"twin", b.twin},
		{"measure", b.measure},
		{"evidence", b.evidence},
		{"broker", b.broker},
		{"many", b.many},
		{"sizes", b.sizes},
	} {
		if b.only != "" && step.name != b.only && step.name != "start" {
			continue
		}
		if err := step.run(); err != nil {
			return err
		}
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "what\tmedian\tfloor\tratio\tgoal")
	for _, r := range b.rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	return t.Flush()
}

func (b *bench) row(what string, value, floor time.Duration, ratio float64, goal string) {
	digits := 2
	if ratio < 0.1 {
		digits = 4
	}
	round := func(d time.Duration) string { return d.Round(10 * time.Microsecond).String() }
	b.rows = append(b.rows, []string{what, round(value), round(floor), fmt.Sprintf("%.*f", digits, ratio), goal})
}

// vmlatch runs one command and returns its output.
func (b *bench) vmlatch(args ...string) ([]byte, error) {
	return b.output(filepath.Join(b.bin, "vmlatch"), args...)
}

// timed runs one command, one of the project's programs unless it has a path, as a whole
// process and returns its time from fork to end. The C program measures that, as it
// measures the floor.
func (b *bench) timed(program string, args ...string) (time.Duration, error) {
	if !filepath.IsAbs(program) {
		program = filepath.Join(b.bin, program)
	}
	out, err := b.output(b.floor, append([]string{"run", program}, args...)...)
	if err != nil {
		return 0, err
	}
	var ns int64
	_, err = fmt.Sscan(string(out), &ns)
	return time.Duration(ns), err
}

func (b *bench) output(program string, args ...string) ([]byte, error) {
	cmd := exec.Command(program, args...)
	cmd.Dir = b.work
	cmd.Env = append(os.Environ(),
		"VMLATCH_RUN_DIR="+b.runDir,
		"VMLATCH_STATE_DIR="+filepath.Join(b.work, "state"),
		"VMLATCH_CACHE_DIR="+filepath.Join(b.work, "cache"))
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%s %s: %w\n%s", filepath.Base(program), strings.Join(args, " "), err, exit.Stderr)
	}
	return out, err
}

// firmware finds an OVMF that has two flash images, and copies its variables.
func (b *bench) firmware() (code string, err error) {
	found, _ := ovmf.FindDescriptors(ovmf.DescriptorDirs()...)
	for _, d := range found {
		if d.VarsImage == "" || !d.Fits("x86_64", "q35") || slices.Contains(d.Features, "requires-smm") {
			continue
		}
		vars, err := os.ReadFile(d.VarsImage)
		if err != nil {
			return "", err
		}
		return d.Image, os.WriteFile(filepath.Join(b.work, "vars.fd"), vars, 0o600)
	}
	return "", errors.New("no OVMF with a variable store is described on this machine (package ovmf)")
}

// floorArgv is the plan's own command line, and the descriptors that it names.
func (b *bench) floorArgv() (fds string, argv []string, err error) {
	out, err := b.vmlatch("plan", "--json", "vm.toml")
	if err != nil {
		return "", nil, err
	}
	var plan struct {
		Argv []string
		FDs  []struct {
			FD      int
			Role    string
			Meaning string
		}
	}
	if err := json.Unmarshal(out, &plan); err != nil {
		return "", nil, err
	}
	files := map[int]string{}
	for i, a := range plan.Argv {
		var fd, set int
		if n, _ := fmt.Sscanf(a, "fd=%d,set=%d,", &fd, &set); n == 2 {
			_, files[fd], _ = strings.Cut(a, ",opaque=")
		}
		if strings.HasPrefix(a, "socket,id=qmp,") {
			plan.Argv[i] = strings.TrimSuffix(a, ",server=on,wait=off") // one end of a socketpair
		}
	}
	var list []string
	for _, f := range plan.FDs {
		kind := "n"
		switch {
		case f.Role == "qmp":
			kind = "q"
		case f.Role == "events":
			kind = "s"
		case f.Role == "pflash0":
			kind = "r" + files[f.FD]
		case f.Role == "pflash1", strings.HasPrefix(f.Role, "disk"):
			kind = "w" + files[f.FD]
		case f.Role == "monitor", f.Role == "console":
			kind = "l"
		}
		list = append(list, fmt.Sprintf("%d=%s", f.FD, kind))
	}
	return strings.Join(list, ","), plan.Argv, nil
}

func (b *bench) startAndStop() error {
	fds, argv, err := b.floorArgv()
	if err != nil {
		return err
	}
	var start, stop, floorStart, floorKill []time.Duration
	for i := range b.rounds + 1 {
		out, err := exec.Command(b.floor, append([]string{"start", fds}, argv...)...).Output()
		if err != nil {
			return fmt.Errorf("floor: %w", err)
		}
		var up, kill int64
		if _, err := fmt.Sscan(string(out), &up, &kill); err != nil {
			return err
		}
		took, err := b.timed("vmlatch", "start", "vm.toml", "--hold")
		if err != nil {
			return err
		}
		ended, err := b.timed("vmlatch", "stop", "vm", "--now")
		if err != nil {
			return err
		}
		if i == 0 {
			continue // warm-up
		}
		start, floorStart = append(start, took), append(floorStart, time.Duration(up))
		stop, floorKill = append(stop, ended), append(floorKill, time.Duration(kill))
	}
	b.bare = floorStart
	b.row("start to paused, whole process",
		median(start), median(floorStart), medianRatio(start, floorStart), "<= 1.15")
	b.row("stop --now, whole process, to SIGKILL until reaped",
		median(stop), median(floorKill), medianRatio(stop, floorKill), "<= 4")
	return nil
}

// commands counts the QMP commands of a start by the replies that QEMU logs.
func (b *bench) commands() error {
	log := filepath.Join(b.work, "qmp.log")
	wrapper := "#!/bin/sh\nfor a; do shift; case $a in socket,id=qmp,*) a=$a,logfile=" + log + ";; esac; " +
		"set -- \"$@\" \"$a\"; done\nexec qemu-system-x86_64 \"$@\"\n"
	if err := os.WriteFile(filepath.Join(b.work, "qemu"), []byte(wrapper), 0o700); err != nil {
		return err
	}
	spec := fmt.Sprintf("memory = \"32MiB\"\naccel = \"tcg\"\nqemu = %q\n", filepath.Join(b.work, "qemu"))
	if err := os.WriteFile(filepath.Join(b.work, "counted.toml"), []byte(spec), 0o600); err != nil {
		return err
	}
	if _, err := b.vmlatch("start", "counted.toml"); err != nil {
		return err
	}
	if _, err := b.vmlatch("stop", "counted", "--now"); err != nil {
		return err
	}
	text, err := os.ReadFile(log)
	if err != nil {
		return err
	}
	n := strings.Count(string(text), `"id":`) + 1 // and one on the events monitor
	b.rows = append(b.rows, []string{"QMP commands of a start, released", fmt.Sprint(n), "", "", "<= 5"})
	return nil
}

func (b *bench) roundTrip() error {
	const calls = 2000
	if _, err := b.vmlatch("start", "small.toml", "--hold"); err != nil {
		return err
	}
	socket := filepath.Join(b.runDir, "small/monitor.sock")
	var own, own99, c, c99 []time.Duration
	for range max(9, b.rounds/2) {
		out, err := exec.Command(b.floor, "qmp", socket, fmt.Sprint(calls)).Output()
		if err != nil {
			return fmt.Errorf("floor: %w", err)
		}
		var p50, p99 int64
		if _, err := fmt.Sscan(string(out), &p50, &p99); err != nil {
			return err
		}
		took, err := measureConn(socket, calls)
		if err != nil {
			return err
		}
		c, c99 = append(c, time.Duration(p50)), append(c99, time.Duration(p99))
		own, own99 = append(own, took[calls/2]), append(own99, took[calls*99/100])
	}
	b.row("QMP round trip, p50, to C", median(own), median(c), medianRatio(own, c), "<= 1.15")
	b.row("QMP round trip, p99, to C", median(own99), median(c99), medianRatio(own99, c99), "<= 1.3")
	_, err := b.vmlatch("stop", "small", "--now")
	return err
}

// measureConn times query-status over this project's client, sorted.
func measureConn(socket string, n int) ([]time.Duration, error) {
	ctx := context.Background()
	conn, err := qmp.Dial(ctx, socket, qmp.Options{})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	took := make([]time.Duration, n)
	for i := range took {
		start := time.Now()
		if _, err := (qmp.QueryStatus{}).Execute(ctx, conn); err != nil {
			return nil, err
		}
		took[i] = time.Since(start)
	}
	slices.Sort(took)
	return took, nil
}

func (b *bench) ps() error {
	const vms = 100
	var started []time.Duration
	for i := range vms {
		took, err := b.timed("vmlatch", "start", "small.toml", "--hold", "--name", fmt.Sprintf("vm%d", i))
		if err != nil {
			return err
		}
		started = append(started, took)
	}
	var took []time.Duration
	for range b.rounds {
		t, err := b.timed("vmlatch", "ps")
		if err != nil {
			return err
		}
		took = append(took, t)
	}
	for i := range vms {
		if _, err := b.vmlatch("stop", fmt.Sprintf("vm%d", i), "--now"); err != nil {
			return err
		}
	}
	b.row(fmt.Sprintf("ps with %d VMs, to one start", vms),
		median(took), median(started), float64(median(took))/float64(median(started)), "< 100 ms")
	return nil
}

func (b *bench) sizes() error {
	for _, name := range []string{"vmlatch", "latchkey", "latchguest", "swtee"} {
		info, err := os.Stat(filepath.Join(b.bin, name))
		if err != nil {
			return err
		}
		goal := map[string]string{"vmlatch": "< 10 MB", "latchkey": "< 12 MB", "latchguest": "< 2.5 MB"}[name]
		size := fmt.Sprintf("%.2f MB", float64(info.Size())/1e6)
		b.rows = append(b.rows, []string{"size of " + name, size, "", "", goal})
	}
	return nil
}

func median(d []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(d))
	return s[len(s)/2]
}

// medianRatio is the median of the ratios round by round.
func medianRatio(a, b []time.Duration) float64 {
	r := make([]float64, len(a))
	for i := range a {
		r[i] = float64(a[i]) / float64(b[i])
	}
	slices.Sort(r)
	return r[len(r)/2]
}
