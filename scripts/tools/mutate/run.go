package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type verdict int

const (
	doesNotCompile verdict = iota
	caughtIt
	survivedIt
)

// pkg is a package whose tests are tried.
type pkg struct {
	o       *options
	dir     string // from the module's directory
	mutants []*mutant
	covered map[string][][2]int // lines that the tests reach, by file
	limit   time.Duration       // for the tests of one mutant
}

func newPackage(o *options, dir string) (*pkg, error) {
	p := &pkg{o: o, dir: dir, covered: map[string][][2]int{}}
	out, err := p.goCommand("list", "-json=GoFiles", "-tags", o.tags, ".").Output()
	if err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	var list struct{ GoFiles []string }
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, err
	}
	for _, name := range list.GoFiles {
		found, err := findMutants(o.top, filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		p.mutants = append(p.mutants, found...)
	}
	return p, nil
}

func (p *pkg) goCommand(args ...string) *exec.Cmd {
	cmd := exec.Command("go", args...)
	cmd.Dir = filepath.Join(p.o.top, p.dir)
	return cmd
}

// baseline runs the tests as they are: they must pass. It notes how long they take
// and what they reach.
func (p *pkg) baseline() error {
	binary, profile := filepath.Join(p.o.workDir, "baseline"), filepath.Join(p.o.workDir, "cover")
	out, err := p.goCommand("test", "-c", "-vet=off", "-cover", "-tags", p.o.tags, "-o", binary, ".").CombinedOutput()
	if err != nil {
		return fmt.Errorf("compile the tests: %w\n%s", err, out)
	}
	if _, err := os.Stat(binary); err != nil {
		return errors.New("has no tests")
	}
	began := time.Now()
	if !p.passes(binary, 10*time.Minute, "-test.coverprofile="+profile) {
		return errors.New("the tests fail without a change")
	}
	p.limit = max(p.o.least, 5*time.Since(began))
	return p.readProfile(profile)
}

// readProfile notes the blocks with a count (go doc cover).
func (p *pkg) readProfile(profile string) error {
	f, err := os.Open(profile)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		path, rest, _ := strings.Cut(lines.Text(), ":")
		var from, fromColumn, to, toColumn, statements, count int
		n, _ := fmt.Sscanf(rest, "%d.%d,%d.%d %d %d", &from, &fromColumn, &to, &toColumn, &statements, &count)
		if n == 6 && count > 0 {
			name := filepath.Join(p.dir, filepath.Base(path))
			p.covered[name] = append(p.covered[name], [2]int{from, to})
		}
	}
	return lines.Err()
}

func (p *pkg) reached(m *mutant) bool {
	for _, lines := range p.covered[m.file] {
		if lines[0] <= m.line && m.line <= lines[1] {
			return true
		}
	}
	return false
}

// try compiles a mutant and runs the tests, if they reach it.
func (p *pkg) try(m *mutant, job int) verdict {
	original := filepath.Join(p.o.top, m.file)
	name := func(s string) string { return filepath.Join(p.o.workDir, s+strconv.Itoa(job)) }
	changed, overlay, binary := name("mutant")+".go", name("overlay"), name("test")
	list, err := json.Marshal(map[string]map[string]string{"Replace": {original: changed}})
	if err != nil || os.WriteFile(changed, m.apply(), 0o600) != nil || os.WriteFile(overlay, list, 0o600) != nil {
		return doesNotCompile
	}
	if !p.reached(m) {
		if p.goCommand("build", "-tags", p.o.tags, "-overlay", overlay, "-o", os.DevNull, ".").Run() != nil {
			return doesNotCompile
		}
		return survivedIt
	}
	compile := p.goCommand("test", "-c", "-vet=off", "-tags", p.o.tags, "-overlay", overlay, "-o", binary, ".")
	if compile.Run() != nil {
		return doesNotCompile
	}
	if p.passes(binary, p.limit) {
		return survivedIt
	}
	return caughtIt
}

// passes runs a test program in its package's directory and reports whether it
// passes within a time. Nothing that it starts in its process group outlives it.
func (p *pkg) passes(binary string, limit time.Duration, args ...string) bool {
	cmd := exec.Command(binary, append(args, "-test.failfast", "-test.timeout="+limit.String())...)
	cmd.Dir = filepath.Join(p.o.top, p.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &out, time.Second
	if cmd.Start() != nil {
		return false
	}
	kill := func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	timer := time.AfterFunc(limit+time.Second, kill)
	err := cmd.Wait()
	timer.Stop()
	kill()
	return err == nil
}
