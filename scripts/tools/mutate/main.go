// Command mutate measures how well a package's own unit tests notice changes.
//
//	mutate [-all | -n N] [-seed S] [-min PERCENT] DIR...
//
// It changes one place at a time: a condition negated, an operator swapped, a call
// or an assignment dropped, an error returned as nil. Each mutant is compiled by way
// of an overlay, so that the sources stay as they are, and run against the tests of
// its package alone. Mutants that do not compile do not count. A survivor is printed
// with its place and its change. A list names survivors that do not change behaviour.
package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

type options struct {
	top     string // the module's directory
	all     bool
	n       int
	seed    uint64
	min     float64
	tags    string
	least   time.Duration
	jobs    int
	known   map[string]bool // equivalent mutants by their keys
	used    map[string]bool
	workDir string
}

func main() {
	o := options{used: map[string]bool{}}
	flag.StringVar(&o.top, "C", ".", "`directory` of the module")
	flag.BoolVar(&o.all, "all", false, "try every mutant")
	flag.IntVar(&o.n, "n", 20, "try a sample of this many mutants of each package")
	flag.Uint64Var(&o.seed, "seed", 1, "which sample")
	flag.Float64Var(&o.min, "min", 0, "fail if a package catches less than this `percentage`")
	flag.StringVar(&o.tags, "tags", "quick", "build tags of the tests")
	flag.DurationVar(&o.least, "timeout", 10*time.Second, "least time for the tests of one mutant")
	flag.IntVar(&o.jobs, "j", 2, "mutants at a time")
	list := flag.String("equivalent", "", "`file` that lists mutants that do not change behaviour")
	flag.Parse()
	if err := o.run(*list, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

func (o *options) run(list string, dirs []string) error {
	var err error
	if o.top, err = filepath.Abs(o.top); err != nil {
		return err
	}
	if o.known, err = readEquivalent(list); err != nil {
		return err
	}
	if o.workDir, err = os.MkdirTemp("", "mutate"); err != nil {
		return err
	}
	defer os.RemoveAll(o.workDir)
	low := 0
	for _, dir := range dirs {
		rate, err := o.mutatePackage(filepath.Clean(dir))
		if err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
		if rate < o.min {
			low++
		}
	}
	for key := range o.known {
		if o.all && !o.used[key] && slices.Contains(dirs, filepath.Dir(keyFile(key))) {
			fmt.Printf("listed as equivalent, and not a survivor: %s\n", key)
		}
	}
	if low > 0 {
		return fmt.Errorf("%d packages catch less than %g %%", low, o.min)
	}
	return nil
}

// mutatePackage tries a package's mutants and returns the percentage caught of
// those that change behaviour.
func (o *options) mutatePackage(dir string) (float64, error) {
	p, err := newPackage(o, dir)
	if err != nil {
		return 0, err
	}
	if err := p.baseline(); err != nil {
		return 0, err
	}
	mutants := p.mutants
	if r := rand.New(rand.NewPCG(o.seed, 0)); !o.all {
		r.Shuffle(len(mutants), func(i, j int) { mutants[i], mutants[j] = mutants[j], mutants[i] })
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	caught, survived, known, next := 0, 0, 0, 0
	for job := range o.jobs {
		wg.Go(func() {
			for {
				mu.Lock()
				tried := caught + survived + known
				if next == len(mutants) || !o.all && tried >= o.n {
					mu.Unlock()
					return
				}
				m := mutants[next]
				next++
				mu.Unlock()
				v := p.try(m, job)
				mu.Lock()
				switch {
				case v == caughtIt:
					caught++
				case v == survivedIt && o.known[m.key()]:
					o.used[m.key()] = true
					known++
				case v == survivedIt:
					survived++
					fmt.Printf("%s:%d: survives: %s\n\t- %s\n\t+ %s\n", m.file, m.line, m.what, m.before, m.after)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	rate := 100.0
	if n := caught + survived; n > 0 {
		rate = 100 * float64(caught) / float64(n)
	}
	fmt.Printf("%-32s %4d of %4d caught, %3.0f %%; %d do not change behaviour\n",
		dir, caught, caught+survived, rate, known)
	return rate, nil
}
