package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// version times "vmlatch --version" against a Go program that does nothing: the
// difference is what vmlatch initialises before its first line runs.
func (b *bench) version() error {
	empty := filepath.Join(b.work, "empty")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", empty, "./integration/bench/floor/empty")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("the empty program: %w\n%s", err, out)
	}
	var took, floors []time.Duration
	for range 10 * b.rounds { // each takes milliseconds
		floor, err := b.timed(empty)
		if err != nil {
			return err
		}
		d, err := b.timed("vmlatch", "--version")
		if err != nil {
			return err
		}
		floors, took = append(floors, floor), append(took, d)
	}
	b.row("vmlatch --version, to an empty Go program",
		median(took), median(floors), medianRatio(took, floors), "<= 1.6")
	return nil
}
