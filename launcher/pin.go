package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/qmp"
)

// pin puts a machine's threads where its spec wants them, before its guest runs. QEMU, which may
// not change that itself, tells which thread is which CPU.
func pin(ctx context.Context, p *plan.Pin, pid int, conn *qmp.Conn) error {
	if !p.On() {
		return nil
	}
	cpus, err := qmp.QueryCPUsFast{}.Execute(ctx, conn)
	if err != nil {
		return err
	}
	if set := p.Others(); set != nil {
		threads, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(groupOf(cpus, pid)), "task"))
		if err != nil {
			return err
		}
		for _, t := range threads {
			tid, err := strconv.Atoi(t.Name())
			if err == nil {
				err = unix.SchedSetaffinity(tid, set)
			}
			if err != nil && !errors.Is(err, unix.ESRCH) { // one that has ended meanwhile
				return pinned("QEMU", err)
			}
		}
	}
	for _, c := range cpus {
		if set := p.Of(c.Index); set != nil {
			if err := unix.SchedSetaffinity(c.Thread, set); err != nil {
				return pinned(fmt.Sprintf("CPU %d", c.Index), err)
			}
		}
	}
	return nil
}

// groupOf is the process of a guest's CPUs: under an emulator it is not the one that was started.
func groupOf(cpus []qmp.CPU, pid int) int {
	if len(cpus) == 0 {
		return pid
	}
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(cpus[0].Thread), "status"))
	if err != nil {
		return pid
	}
	_, rest, _ := strings.Cut(string(b), "\nTgid:")
	line, _, _ := strings.Cut(rest, "\n")
	if n, err := strconv.Atoi(strings.TrimSpace(line)); err == nil {
		return n
	}
	return pid
}

func pinned(what string, err error) error {
	e := &fault.Error{Kind: fault.Host, Err: fmt.Errorf("%s cannot be pinned: %w", what, err)}
	if errors.Is(err, unix.EINVAL) {
		e.Fix = "the processors must be there, and be allowed for this process (lscpu; the unit's AllowedCPUs=)"
	}
	return e
}
