package launcher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"

	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/qmp"
)

// StartOptions change how a machine is started.
type StartOptions struct {
	// Foreground ties the machine to this process: it dies with the calling
	// thread, which must stay alive. Start locks the goroutine to it.
	Foreground bool
	// Hold leaves the machine paused on purpose: it stays so when this process
	// goes, and other commands take it further. Without it a machine whose
	// launching process dies is ended by the next command.
	Hold bool
	// Unit is the service manager's unit that the machine belongs to, for the record.
	Unit string
	// Step is told the name of each step (reserve, sockets, slot, record, key, fork,
	// started, connect, query, paused) before it is taken; nil is fine.
	Step func(step string)
	// SlotWait is how long a start is tried again that found no encryption slot:
	// the platform gives slots back late. Notice is told of each wait; nil is fine.
	SlotWait time.Duration
	Notice   func(text string)
	// Warn is told of each check that warns; nil is fine. Checks that refuse are
	// an error, always.
	Warn func(CheckResult)
}

// StartError is a QEMU that did not come up.
type StartError struct {
	Name   string
	Err    error
	Stderr string // the last lines that QEMU wrote
	// Attempts is how often it was tried, if more than once.
	Attempts int
}

func (e *StartError) Error() string {
	if e.Attempts > 1 {
		once := *e
		once.Attempts = 0
		return fmt.Sprintf("%s (tried %d times)", once.Error(), e.Attempts)
	}
	switch {
	case e.Stderr == "":
		return fmt.Sprintf("%s: QEMU did not start: %v", e.Name, e.Err)
	case errors.Is(e.Err, qmp.ErrClosed): // it ended, and said why
		return fmt.Sprintf("%s: QEMU did not start: %s", e.Name, e.Stderr)
	}
	return fmt.Sprintf("%s: QEMU did not start: %v (it wrote: %s)", e.Name, e.Err, e.Stderr)
}

// Unwrap returns the cause.
func (e *StartError) Unwrap() error { return e.Err }

// child is QEMU, or the emulator around it, as this process's child.
type child struct {
	pid  int
	done chan struct{} // closed when it has been reaped
}

// starter holds what a start has opened so far.
type starter struct {
	plan    *Plan
	opt     StartOptions
	dir     *rundir.Dir
	files   map[string]*os.File // for the child, by role
	client  net.Conn            // our end of the qmp socket, connected before exec
	events  net.Conn
	machine *Machine
}

// Start carries out a plan up to the paused machine, if no check refuses it. When
// it fails, nothing of the VM is left.
func Start(ctx context.Context, plan *Plan, opt StartOptions) (*Machine, error) {
	if opt.Step == nil {
		opt.Step = func(string) {}
	}
	if err := plan.CheckFiles(); err != nil {
		return nil, err
	}
	warnings, err := approve(plan)
	var refused *CheckError
	if errors.As(err, &refused) && opt.SlotWait > 0 && len(refused.Failed) == 1 && refused.Failed[0].ID == freeSlots {
		err = nil // it may become free: taking it says so
	}
	if err != nil {
		return nil, err
	}
	for _, w := range warnings {
		if opt.Warn != nil {
			opt.Warn(w)
		}
	}
	if opt.Foreground {
		runtime.LockOSThread()
	}
	return retrying(ctx, plan.Name, opt, func() (*Machine, error) { return startOnce(ctx, plan, opt) })
}

func startOnce(ctx context.Context, plan *Plan, opt StartOptions) (*Machine, error) {
	opt.Step("reserve")
	dir, err := plan.Dirs.Create(plan.Name)
	if err != nil {
		return nil, err
	}
	s := &starter{plan: plan, opt: opt, dir: dir, files: map[string]*os.File{}}
	m, err := s.run(ctx)
	s.closeFiles()
	if err != nil {
		s.undo()
		return nil, err
	}
	return m, nil
}

func (s *starter) run(ctx context.Context) (*Machine, error) {
	s.opt.Step("sockets")
	if err := s.open(); err != nil {
		return nil, err
	}
	s.opt.Step("record")
	if err := s.exec(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	s.opt.Step("connect")
	events := s.negotiateEvents(ctx)
	conn, err := qmp.NewConn(ctx, s.client, qmp.Options{})
	s.client = nil // NewConn owns it
	eventsErr := <-events
	if err == nil {
		s.machine.conn = conn
		err = eventsErr
	}
	if err != nil {
		return nil, s.startError(ctx, err)
	}
	s.opt.Step("query")
	if err := s.query(ctx, conn); err != nil {
		return nil, s.startError(ctx, err)
	}
	return s.machine, nil
}

// open makes everything that the child inherits. Our connection to its monitor
// is made before it runs, so nobody else can be first and nobody needs to poll.
func (s *starter) open() error {
	s.files[roleVMLock] = s.dir.VMLockFile()
	for role, name := range map[string]string{
		roleQMP: rundir.QMPSocket, roleMonitor: rundir.MonitorSocket, roleConsole: rundir.ConsoleSocket,
	} {
		f, err := listen(s.dir.Path(name))
		if err != nil {
			return err
		}
		s.files[role] = f
	}
	for _, c := range s.plan.Copies {
		if err := copyFile(c.From, c.To); err != nil {
			return err
		}
	}
	if slot := s.plan.Slot; slot != nil {
		s.opt.Step("slot")
		lease, err := slot.take()
		if err != nil {
			return fmt.Errorf("%s: %w", s.plan.Name, err)
		}
		s.files[roleSlot] = lease.File()
	}
	var err error
	if s.client, err = net.Dial("unix", s.dir.Path(rundir.QMPSocket)); err != nil {
		return err
	}
	s.events, s.files[roleEvents], err = qmp.Pair()
	return err
}

func (s *starter) exec() error {
	log, err := os.OpenFile(s.dir.LogPath(rundir.QEMULog), os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	s.machine = &Machine{dir: s.dir, tech: s.plan.tech, rec: s.newRecord()}
	if err := s.dir.WriteRecord(s.machine.rec); err != nil {
		return err
	}
	ended := make(chan struct{})
	pid, err := s.withKey(func(argv []string) (int, error) { return s.fork(argv, log) }, ended)
	var lacking *HostError
	if errors.As(err, &lacking) {
		return err
	}
	if err != nil {
		return &StartError{Name: s.plan.Name, Err: err}
	}
	s.opt.Step("started")
	s.closeFiles() // QEMU has its own; if it dies now, our connection ends
	s.dir.DropVMLock()
	s.machine.own = &child{pid, ended}
	go func() {
		defer close(s.machine.own.done)
		var status syscall.WaitStatus // says less than the event log
		for {
			if _, err := syscall.Wait4(pid, &status, 0, nil); err != syscall.EINTR {
				return
			}
		}
	}()
	s.machine.rec.PID = pid
	return nil
}

// fork runs the plan's command with the descriptors in the plan's order. It is
// syscall.ForkExec because os/exec first forks a child to find out about pidfds.
func (s *starter) fork(argv []string, log *os.File) (int, error) {
	if need := s.plan.MemoryLock; need > 0 {
		if err := allowLock(need); err != nil {
			return 0, err
		}
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	attr := &syscall.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys: &syscall.SysProcAttr{Setsid: true}, // Ctrl-C is for us, not for the VM
	}
	if s.opt.Foreground {
		attr.Sys.Pdeathsig = syscall.SIGKILL
	}
	for _, fd := range s.plan.FDs {
		attr.Files = append(attr.Files, s.files[fd.Role].Fd())
	}
	pid, err := syscall.ForkExec(argv[0], argv, attr)
	runtime.KeepAlive(s.files)
	if err != nil {
		err = &os.PathError{Op: "exec", Path: argv[0], Err: err}
	}
	return pid, err
}

func (s *starter) newRecord() *rundir.Record {
	spec := s.plan.spec
	return &rundir.Record{
		Schema: rundir.RecordSchema, Name: s.plan.Name, Technology: s.plan.Technology, Emulated: s.plan.Emulated,
		State: string(Launching), Started: time.Now().UTC(), QEMU: s.plan.Argv[0],
		Origin: rundir.Origin{Spec: s.plan.spec.path(), Hold: s.opt.Hold, Foreground: s.opt.Foreground, Unit: s.opt.Unit},
		Memory: spec.Memory.String(), CPUs: spec.CPUs, Argv: s.plan.Argv, Choices: s.plan.Choices,
		Latch: rundir.Latch{Until: spec.Latch.Until, Open: spec.Latch.Until != UntilSecret},
	}
}

// negotiateEvents switches the events monitor on and leaves it: QEMU goes on
// writing to its log with nobody at the other end.
func (s *starter) negotiateEvents(ctx context.Context) <-chan error {
	nc := s.events
	s.events = nil
	done := make(chan error, 1)
	go func() {
		c, err := qmp.NewConn(ctx, nc, qmp.Options{})
		if err == nil {
			err = c.Close()
		}
		done <- err
	}()
	return done
}

// query learns what QEMU and its platform are; its reply proves that the
// machine is built.
func (s *starter) query(ctx context.Context, conn *qmp.Conn) error {
	var info *rundir.SEV
	if query := s.plan.tech.query; query != nil {
		var err error
		if info, err = query(ctx, conn, s.plan); err != nil {
			return err
		}
	} else {
		status, err := qmp.QueryStatus{}.Execute(ctx, conn)
		if err != nil {
			return err
		}
		if status.Running {
			return errors.New("QEMU runs the guest although it was told to wait")
		}
	}
	s.opt.Step("paused")
	return s.machine.become(Paused, func(r *rundir.Record) {
		r.SEV, r.Version, r.Settled = info, conn.Version().String(), s.opt.Hold
	})
}

// startError adds what QEMU wrote before it went.
func (s *starter) startError(ctx context.Context, err error) error {
	if m := s.machine; m != nil && m.own != nil && errors.Is(err, qmp.ErrClosed) {
		select { // it is going: let it say why
		case <-m.own.done:
		case <-ctx.Done():
		}
	}
	return &StartError{Name: s.plan.Name, Err: err, Stderr: lastLines(s.dir.LogPath(rundir.QEMULog), 5)}
}

// closeFiles closes our copies of what the child inherits, except the lock.
func (s *starter) closeFiles() {
	for role, f := range s.files {
		if role != roleVMLock && f != nil {
			_ = f.Close()
		}
		delete(s.files, role)
	}
}

// undo ends what was started and removes what was made.
func (s *starter) undo() {
	for _, c := range []net.Conn{s.client, s.events} {
		if c != nil {
			_ = c.Close()
		}
	}
	if s.machine != nil {
		s.machine.disconnect()
	}
	s.dir.DropVMLock()
	err := s.dir.Kill(context.Background()) // by the lock, so also an emulator's QEMU
	if s.machine != nil && s.machine.own != nil {
		own := s.machine.own
		if err != nil {
			_ = syscall.Kill(own.pid, syscall.SIGKILL)
		}
		select {
		case <-own.done:
		case <-time.After(undoTimeout):
			s.dir.Close()
			return // it cannot be ended: its directory is how it can be found
		}
	}
	_ = s.dir.Discard()
}

// undoTimeout is how long a killed child may take to end.
const undoTimeout = 10 * time.Second

// Discard ends a machine whose launch is given up and removes every trace of it.
func (m *Machine) Discard(ctx context.Context) error {
	m.disconnect()
	if err := m.dir.Kill(ctx); err != nil {
		return err // its directory is how it can be found
	}
	return m.dir.Discard()
}
