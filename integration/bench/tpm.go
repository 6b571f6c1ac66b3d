package main

import (
	"os"
	"path/filepath"
	"time"
)

// tpm compares starts with a TPM that is there already with starts without one.
func (b *bench) tpm() error {
	text, err := os.ReadFile(filepath.Join(b.work, "vm.toml"))
	if err != nil {
		return err
	}
	with := string(text) + "[tpm]\n"
	if err := os.WriteFile(filepath.Join(b.work, "tpm.toml"), []byte(with), 0o600); err != nil {
		return err
	}
	var starts, floors []time.Duration
	for i := range b.rounds + 1 {
		var took [2]time.Duration
		for n, name := range []string{"vm", "tpm"} {
			if took[n], err = b.timed("vmlatch", "start", name+".toml", "--name", name, "--hold"); err != nil {
				return err
			}
			if _, err := b.vmlatch("stop", name, "--now"); err != nil {
				return err
			}
		}
		if i > 0 { // the first makes the TPM
			floors, starts = append(floors, took[0]), append(starts, took[1])
		}
	}
	b.row("start to paused with a TPM, to one without", median(starts), median(floors), medianRatio(starts, floors),
		"<= 1.25")
	return nil
}
