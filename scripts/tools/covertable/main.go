// Command covertable shows how many statements the tests reach, package by package:
// the unit tests of the package itself, the programs as the integration tests run
// them, and both.
//
//	covertable -unit PROFILE [-programs PROFILE]
//
// Profiles are those of "go test -coverprofile" and "go tool covdata textfmt". It
// fails if a goal is missed.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
)

const module = "github.com/vmlatch/vmlatch/"

// goal is the least percentage of a package's or a file's statements. The first goal
// that fits a name counts.
type goal struct {
	name     string // as path.Match has it; of all below it, with /... at its end
	programs bool   // reached by the programs and the unit tests together
	percent  float64
}

var goals = []goal{
	{"launcher/machine.go", false, 90},
	{"launcher/start.go", false, 90},
	{"cmd/vmlatch", true, 85},
	{"cmd/latchkey", true, 85},
	{"firmware/ovmf/ovmftest", false, 0}, // help for tests
	{"firmware/internal/vectors", false, 0},
	{"firmware/swtee/...", false, 0}, // its tests reach it through a QEMU that is traced
	{"qmp/qmptest", false, 0},
	{"launcher/internal/testdir", false, 0},
	{"launcher/internal/testhost", false, 0},
	{"firmware/cpuid", true, 75}, // a machine has one vendor's processor
	{"launcher/...", false, 85},
	{"firmware/...", false, 85},
	{"qmp", false, 85},
	{"keyring", false, 85},
}

func main() {
	unit := flag.String("unit", "", "`profile` of the unit tests")
	programs := flag.String("programs", "", "`profile` of the programs in the integration tests")
	flag.Parse()
	if err := run(os.Stdout, *unit, *programs); err != nil {
		fmt.Fprintln(os.Stderr, "covertable:", err)
		os.Exit(1)
	}
}

// block is a piece of a file with so many statements.
type block struct {
	file, place string
	statements  int
}

type profile map[block]bool // whether it was reached

func read(file string) (profile, error) {
	if file == "" {
		return profile{}, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parse(f)
}

func parse(r io.Reader) (profile, error) {
	p := profile{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "mode:") {
			continue
		}
		var b block
		count := 0
		name, rest, _ := strings.Cut(line, ":")
		if n, _ := fmt.Sscanf(rest, "%s %d %d", &b.place, &b.statements, &count); n != 3 {
			return nil, fmt.Errorf("line %q", line)
		}
		b.file = strings.TrimPrefix(name, module)
		p[b] = p[b] || count > 0
	}
	return p, lines.Err()
}

// tally counts statements.
type tally struct{ unit, programs, both, all int }

func percent(n, all int) float64 { return 100 * float64(n) / float64(all) }

func run(w io.Writer, unitFile, programsFile string) error {
	unit, err := read(unitFile)
	if err != nil {
		return err
	}
	programs, err := read(programsFile)
	if err != nil {
		return err
	}
	missed := table(w, unit, programs)
	if missed > 0 {
		return fmt.Errorf("%d goals are missed", missed)
	}
	if len(unit) == 0 {
		return errors.New("the profile is empty")
	}
	return nil
}

// table prints a line for each package, and for each file that has a goal of its own.
func table(w io.Writer, unit, programs profile) (missed int) {
	tallies := map[string]*tally{}
	add := func(name string, b block) {
		t := tallies[name]
		if t == nil {
			t = &tally{}
			tallies[name] = t
		}
		t.all += b.statements
		if unit[b] {
			t.unit += b.statements
		}
		if programs[b] {
			t.programs += b.statements
		}
		if unit[b] || programs[b] {
			t.both += b.statements
		}
	}
	blocks := map[block]bool{}
	for _, p := range []profile{unit, programs} {
		for b := range p {
			blocks[b] = true
		}
	}
	for b := range blocks {
		add(path.Dir(b.file), b)
		if g := goalOf(b.file); g != nil && g.name == b.file {
			add(b.file, b)
		}
	}
	fmt.Fprintf(w, "%-36s %8s %9s %8s %6s\n", "statements reached by", "unit", "programs", "both", "goal")
	for _, name := range slices.Sorted(maps.Keys(tallies)) {
		t := tallies[name]
		if t.all == 0 {
			continue
		}
		fmt.Fprintf(w, "%-36s %7.1f%% %8.1f%% %7.1f%%", name,
			percent(t.unit, t.all), percent(t.programs, t.all), percent(t.both, t.all))
		g := goalOf(name)
		if g == nil || g.percent == 0 || g.programs && len(programs) == 0 {
			fmt.Fprintln(w)
			continue
		}
		have := percent(t.unit, t.all)
		if g.programs {
			have = percent(t.both, t.all)
		}
		note := ""
		if have < g.percent {
			note = "  missed"
			missed++
		}
		fmt.Fprintf(w, " %5.0f%%%s\n", g.percent, note)
	}
	return missed
}

func goalOf(name string) *goal {
	for i, g := range goals {
		below, tree := strings.CutSuffix(g.name, "/...")
		if g.name == name ||
			tree && !strings.HasSuffix(name, ".go") && (name == below || strings.HasPrefix(name, below+"/")) {
			return &goals[i]
		}
	}
	return nil
}
