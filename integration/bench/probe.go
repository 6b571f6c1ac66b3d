package main

import (
	"context"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/vmlatch/vmlatch/launcher/host"
)

// probe times what the start of a confidential guest does before it runs QEMU: it asks
// QEMU what it can do, once, and looks at the host, every time.
func (b *bench) probe() error {
	ctx := context.Background()
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return err
	}
	if qemu, err = filepath.Abs(qemu); err != nil {
		return err
	}
	cache := host.Cache{Dir: filepath.Join(b.work, "probe")}
	if _, err := cache.Probe(ctx, qemu); err != nil {
		return err
	}
	var cold, warm []time.Duration
	for range b.rounds {
		began := time.Now()
		if _, err := host.Probe(ctx, qemu); err != nil {
			return err
		}
		cold = append(cold, time.Since(began))
		began = time.Now()
		if _, err := cache.Probe(ctx, qemu); err != nil {
			return err
		}
		if _, err := host.Detect("/"); err != nil {
			return err
		}
		warm = append(warm, time.Since(began))
	}
	bare := median(b.bare)
	b.row("asking QEMU what it can do, to a bare start",
		median(cold), bare, float64(median(cold))/float64(bare), "<= 4")
	b.row("the same from the cache, and a look at the host",
		median(warm), bare, float64(median(warm))/float64(bare), "<= 0.01")
	return nil
}
