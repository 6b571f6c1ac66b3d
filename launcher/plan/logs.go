package plan

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/internal/argv"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// LogKeeper is a process between QEMU and its logs, which never exceed their bound then.
type LogKeeper struct {
	Program string // which understands [KeepLogs]
	Max     int64  // of each log, in bytes
}

// KeepLogs is the first argument of the keeper's program. The others are those of
// launcher/logkeeper, Main.
const KeepLogs = "__logs"

// logged makes a chardev write what it sends and receives to a log that QEMU inherits. It
// appends, so that the log can be cut while it runs.
func (b *Builder) logged(chardev *argv.Option, name string) *argv.Option {
	path := filepath.Join(b.plan.Dirs.State, b.plan.Name, name)
	fd := b.Inherit(name, "the log "+path, openLog(b.Facts, name))
	b.Option("-add-fd", argv.Key("fd", strconv.Itoa(fd)).SetInt("set", fd).Set("opaque", path).String())
	return chardev.Set("logfile", fmt.Sprintf("/dev/fdset/%d", fd)).SetBool("logappend", true)
}

// openLog opens what is written to for a log: the file, or the keeper's pipe.
func openLog(f *Facts, name string) Opener {
	if f.LogKeeper == nil {
		return func(o *Opening) (*os.File, error) { return o.Dir.CreateLog(name) }
	}
	return pipeEnd(name)
}

// OpenOutput opens what the standard streams of the VM's processes are written to.
func (p *Plan) OpenOutput(o *Opening) (*os.File, error) { return openLog(p.Facts, rundir.QEMULog)(o) }

// pipeEnd makes a pipe at its first call for a name and returns the end to write to, and the
// end to read from at the second.
func pipeEnd(name string) Opener {
	return bothEnds(name, func() (first, second *os.File, err error) {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			return nil, nil, os.NewSyscallError("pipe", err)
		}
		return os.NewFile(uintptr(fds[1]), name), os.NewFile(uintptr(fds[0]), name), nil
	})
}

// RoleKeeper is the keeper of the logs.
const RoleKeeper = "log-keeper"

// keepLogs adds the keeper of the logs, if the host wants one. It ends when the last process
// of the VM has closed its ends of the pipes.
func (b *Builder) keepLogs() {
	k := b.Facts.LogKeeper
	if k == nil {
		return
	}
	h := Helper{ // its command line shows whose logs it keeps
		Role: RoleKeeper, Meaning: "a process that keeps the logs within their bound", Silent: true,
		Argv: []string{k.Program, KeepLogs, strconv.FormatInt(k.Max, 10)},
	}
	for _, name := range []string{rundir.ConsoleLog, rundir.EventsLog, rundir.QEMULog} {
		path := filepath.Join(b.plan.Dirs.State, b.plan.Name, name)
		from := inherit(&h.FDs, FD{Role: name, Meaning: "what is written to the log", open: pipeEnd(name)})
		to := inherit(&h.FDs, FD{
			Role: name, Meaning: "the log " + path,
			open: func(o *Opening) (*os.File, error) { return o.Dir.CreateLog(name) },
		})
		h.Argv = append(h.Argv, fmt.Sprintf("%d:%d:%s", from, to, path))
	}
	inherit(&h.FDs, FD{Role: "helper-lock", Meaning: "the lock by which it is found", open: helperLock})
	inherit(&h.FDs, FD{
		Role: "logs-lock", Meaning: "the lock that shows that the logs are not complete",
		open: func(o *Opening) (*os.File, error) { return o.Dir.LockLogs() },
	})
	b.plan.Helpers = append(b.plan.Helpers, h)
}
