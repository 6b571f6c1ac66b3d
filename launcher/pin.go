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
	"github.com/vmlatch/vmlatch/launcher/internal/procfs"
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
	threads, err := threadsOf(pid, cpus)
	if err != nil {
		return err
	}
	if set := p.Others(); set != nil {
		for _, tid := range threads {
			err := unix.SchedSetaffinity(tid, set)
			if err != nil && !errors.Is(err, unix.ESRCH) { // one that has ended meanwhile
				return pinned("QEMU", err)
			}
		}
	}
	for _, c := range cpus {
		set := p.Of(c.Index)
		if set == nil {
			continue
		}
		tid, ok := threads[c.Thread]
		if !ok {
			return pinned(fmt.Sprintf("CPU %d", c.Index), fmt.Errorf("QEMU has no thread %d", c.Thread))
		}
		if err := unix.SchedSetaffinity(tid, set); err != nil {
			return pinned(fmt.Sprintf("CPU %d", c.Index), err)
		}
	}
	return nil
}

// threadsOf are the threads of a guest's QEMU, by the numbers that it calls them. They are those of
// its namespace of processes; under an emulator, it is not the process that was started.
func threadsOf(pid int, cpus []qmp.CPU) (map[int]int, error) {
	threads, err := tasks(pid)
	if err != nil || len(cpus) == 0 || threads[cpus[0].Thread] != 0 {
		return threads, err
	}
	status, err := procfs.Status(filepath.Join("/proc", strconv.Itoa(cpus[0].Thread)))
	if err != nil {
		return nil, fmt.Errorf("QEMU's thread %d: %w", cpus[0].Thread, err)
	}
	group, err := strconv.Atoi(status["Tgid"])
	if err != nil {
		return nil, fmt.Errorf("QEMU's thread %d: %w", cpus[0].Thread, err)
	}
	return tasks(group)
}

// tasks are a process's threads, by their numbers in its own namespace (proc(5), NSpid).
func tasks(pid int) (map[int]int, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "task")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	all := map[int]int{}
	for _, e := range entries {
		status, err := procfs.Status(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // it has ended meanwhile
		}
		tid, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, err
		}
		own := tid
		if ids := strings.Fields(status["NSpid"]); len(ids) > 0 { // since Linux 4.1
			if own, err = strconv.Atoi(ids[len(ids)-1]); err != nil {
				return nil, err
			}
		}
		all[own] = tid
	}
	return all, nil
}

func pinned(what string, err error) error {
	e := &fault.Error{Kind: fault.Host, Err: fmt.Errorf("%s cannot be pinned: %w", what, err)}
	if errors.Is(err, unix.EINVAL) {
		e.Fix = "the processors must be there, and be allowed for this process (lscpu; the unit's AllowedCPUs=)"
	}
	return e
}
