package launcher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/cgroup"
	"github.com/vmlatch/vmlatch/launcher/check"
	"github.com/vmlatch/vmlatch/launcher/confine"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/qmp"
)

// starter holds what a start has opened so far.
type starter struct {
	ctx     context.Context
	plan    *Plan
	opt     StartOptions
	dir     *rundir.Dir
	opening plan.Opening
	files   []*os.File    // for QEMU, in the plan's order
	client  net.Conn      // our end of the qmp socket, connected before exec
	steps   []rundir.Step // before there is a machine
	machine *Machine
	helpers []*forking
	uids    map[*confine.Box]int // of processes that have their own
}

func (s *starter) step(name string) {
	if s.machine != nil {
		s.machine.takes(s.ctx, name)
		return
	}
	s.steps = keep(s.steps, name)
	step(s.ctx, name)
}

// Start carries out a plan up to the paused machine, if no check refuses it. When it
// fails, nothing of the VM is left.
func (p *Plan) Start(ctx context.Context, opt StartOptions) (*Machine, error) {
	if err := p.approve(opt); err != nil {
		return nil, err
	}
	if opt.Foreground {
		runtime.LockOSThread()
	}
	return retrying(ctx, p.Name, opt, func() (*Machine, error) { return p.startOnce(ctx, opt) })
}

// approve makes all checks of a plan, and is an error if one refuses it.
func (p *Plan) approve(opt StartOptions) error {
	if err := p.CheckFiles(); err != nil {
		return err
	}
	results := p.Check()
	if opt.SlotWait > 0 && check.Only(results, check.FreeSlots) {
		results = check.Except(results, check.FreeSlots) // it may become free: taking it tells
	}
	if err := check.Error(p.Guest.File.Path, results); err != nil {
		return err
	}
	for _, r := range results {
		if r.Warns() && opt.Warn != nil {
			opt.Warn(r)
		}
	}
	return nil
}

func (p *Plan) startOnce(ctx context.Context, opt StartOptions) (*Machine, error) {
	begun := keep(nil, "reserve")
	step(ctx, "reserve")
	dir, err := p.Dirs.Create(ctx, p.Name)
	if err != nil {
		return nil, err
	}
	s := &starter{
		ctx: ctx, plan: p, opt: opt, dir: dir, steps: begun,
		opening: plan.Opening{Dir: dir, Kept: map[string]net.Conn{}},
	}
	defer s.opening.Close()
	err = s.run(ctx)
	s.closeFiles()
	if err != nil {
		s.undo()
		return nil, err
	}
	return s.machine, nil
}

func (s *starter) run(ctx context.Context) error {
	var session *brokerSession
	if s.plan.guest.FromBroker() {
		s.step("session")
		var err error
		if session, err = s.plan.askSession(ctx, s.dir); err != nil {
			return err
		}
	}
	if err := s.makeTPM(ctx); err != nil {
		return err
	}
	s.step("sockets")
	if err := s.open(); err != nil {
		return err
	}
	s.step("record")
	if err := s.exec(); err != nil {
		return err
	}
	s.machine.session = session
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	s.step("connect")
	events := s.negotiateEvents(ctx)
	conn, err := qmp.NewConn(ctx, s.client, qmpOptions(ctx))
	s.client = nil // NewConn owns it
	eventsErr := <-events
	if err == nil {
		s.machine.conn = conn
		err = eventsErr
	}
	if err != nil {
		return s.startError(ctx, err)
	}
	s.step("query")
	if err := s.query(ctx, conn); err != nil {
		return s.startError(ctx, err)
	}
	return pin(ctx, &s.plan.Guest.Pin, s.machine.rec.PID, conn)
}

// open makes everything that QEMU inherits. Our connection to its monitor is made
// before it runs, so nothing else can be first and nothing needs to poll.
func (s *starter) open() error {
	for _, c := range s.plan.Copies {
		var err error
		if c.Keep {
			err = s.dir.KeepFile(c.From, filepath.Base(c.To))
		} else {
			err = copyFile(c.From, c.To)
		}
		if err != nil {
			return err
		}
	}
	files, err := s.openAll(s.plan.FDs)
	s.files = files
	if err != nil {
		return err
	}
	if err := s.makeDirs(); err != nil {
		return err
	}
	if err := s.chooseUsers(); err != nil {
		return err
	}
	s.client, err = net.Dial("unix", s.dir.Path(rundir.QMPSocket))
	return err
}

// openAll opens what descriptors stand for; on an error the caller closes those that
// are open.
func (s *starter) openAll(fds []plan.FD) (files []*os.File, err error) {
	for _, fd := range fds {
		if name := fd.Step(); name != "" {
			s.step(name)
		}
		f, err := fd.Open(&s.opening)
		if err != nil {
			return files, fmt.Errorf("%s: %w", s.plan.Name, err)
		}
		files = append(files, f)
	}
	return files, nil
}

func (s *starter) exec() error {
	log, err := s.plan.OpenOutput(&s.opening)
	if err != nil {
		return err
	}
	defer log.Close()
	s.machine = &Machine{dir: s.dir, tech: s.plan.Traits, rec: s.newRecord()}
	if err := s.dir.WriteRecord(s.machine.rec); err != nil {
		return err
	}
	attach, err := s.attach()
	if err != nil {
		return err
	}
	walls := s.box("QEMU", s.plan.Confinement)
	if walls != nil {
		walls.attach = attach
		if !s.opt.Foreground && s.plan.Key == nil { // those must be forked by the thread that ends, or has the key
			walls.early = s.opt.Early
		}
		if os.Geteuid() == 0 {
			walls.give = s.dir.GiveTo
		}
	}
	if need := s.plan.MemoryLock; need > 0 && walls == nil { // else it is the stage's
		if err := allowLock(need); err != nil {
			return err
		}
	}
	if err := s.help(log); err != nil {
		return err
	}
	ended := make(chan struct{})
	pid, err := withKey(s.plan.Key, s, func(argv []string) (int, error) {
		return (&command{
			argv: argv, files: s.files, log: log, env: os.Environ(), foreground: s.opt.Foreground, box: walls,
		}).fork()
	}, ended)
	helpersErr := s.helped()
	if errors.Is(err, fault.ErrHost) {
		return err
	}
	if err != nil {
		return s.failed(fmt.Errorf("QEMU did not start: %w", err))
	}
	if walls == nil && attach != nil {
		if err := attach(pid); err != nil {
			s.machine.own = reap(pid, ended)
			return err
		}
	}
	s.step("started")
	s.machine.asks = s.opening.Read[plan.RoleBroker]
	delete(s.opening.Read, plan.RoleBroker)
	s.machine.qtest = s.opening.Kept[plan.RoleQtest]
	delete(s.opening.Kept, plan.RoleQtest)
	s.closeFiles() // QEMU has its own; if it dies now, our connection ends
	s.dir.DropVMLock()
	s.machine.own = reap(pid, ended)
	s.machine.rec.PID = pid
	if helpersErr != nil {
		return helpersErr
	}
	if walls != nil {
		s.machine.rec.Confinement = walls.record()
	} else if s.plan.Emulated { // the emulator's end is not QEMU's: the lock tells
		return nil
	}
	s.machine.rec.Wrapped = walls == nil
	s.machine.rec.Process, err = rundir.Identify(pid)
	if err != nil { // it has ended already; the connection will tell
		s.machine.rec.Process = nil
	}
	return nil
}

// negotiateEvents switches the events monitor on and leaves it: QEMU goes on writing
// to its log with nothing at the other end.
func (s *starter) negotiateEvents(ctx context.Context) <-chan error {
	nc := s.opening.Kept[plan.RoleEvents]
	delete(s.opening.Kept, plan.RoleEvents)
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

// query learns what QEMU and its platform are; its reply proves that the machine is
// built.
func (s *starter) query(ctx context.Context, conn *qmp.Conn) error {
	info, err := s.plan.guest.Query(ctx, s.plan.Plan, conn)
	if err != nil {
		return err
	}
	if err := s.machine.helperEnded(); err != nil {
		return err
	}
	s.step("paused")
	return s.machine.become(Paused, func(r *rundir.Record) {
		r.SEV, r.Version, r.Settled = info, conn.Version().String(), s.opt.Hold
	})
}

// startError adds what QEMU wrote before it ended.
func (s *starter) startError(ctx context.Context, err error) error {
	ended := errors.Is(err, qmp.ErrClosed)
	if m := s.machine; m.own != nil && ended {
		select { // it is ending: let it say why
		case <-m.own.done:
		case <-time.After(quickTimeout):
		case <-ctx.Done():
		}
		s.dir.AwaitLogs(ctx)
	}
	switch wrote := s.plan.Named(lastLines(s.dir.LogPath(rundir.QEMULog), 5)); {
	case wrote == "":
		return s.failed(fmt.Errorf("QEMU did not start: %w", err))
	case ended:
		return s.failed(fmt.Errorf("QEMU did not start: %s", wrote))
	default:
		return s.failed(fmt.Errorf("QEMU did not start: %w (it wrote: %s)", err, wrote))
	}
}

func (s *starter) failed(err error) error {
	return &fault.Error{Kind: fault.QEMU, Op: s.plan.Name, Err: err}
}

// closeFiles closes our copies of what QEMU inherits.
func (s *starter) closeFiles() {
	closeAll(s.files)
	s.files = nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// undo ends what was started and removes what was made.
func (s *starter) undo() {
	s.opening.Close() // or this process would look like one of the VM's
	if s.client != nil {
		_ = s.client.Close()
	}
	if s.machine != nil {
		s.machine.disconnect()
	}
	s.dir.DropVMLock()
	err := undoing(s.dir.Kill) // by the lock, so also an emulator's QEMU
	if s.machine != nil && s.machine.own != nil {
		if err = s.machine.own.end(err != nil); err == nil {
			err = undoing(s.dir.KillIfHeld)
		}
	}
	if s.machine != nil && s.machine.rec.Group != "" {
		cgroup.Remove(s.machine.rec.Group)
	}
	if err != nil {
		s.dir.Close()
		return // what cannot be ended can be found by its directory
	}
	_ = s.dir.Discard()
}

// end waits for the end of a process of ours, which is killed, or is to be.
func (p *child) end(kill bool) error {
	if kill {
		_ = syscall.Kill(p.pid, unix.SIGKILL)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(undoTimeout):
		return fmt.Errorf("process %d does not end", p.pid)
	}
}

// undoing gives a step of undo its time.
func undoing(f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	return f(ctx)
}

// undoTimeout is how long killed processes may take to end.
const undoTimeout = 10 * time.Second

// Discard ends a machine whose launch is given up and removes every trace of it.
func (m *Machine) Discard(ctx context.Context) error {
	m.disconnect()
	defer m.dir.Close()
	if err := m.dir.Kill(ctx); err != nil {
		return err // its directory is how it can be found
	}
	if m.rec.Released != nil { // it was refused while it ran: its console says more
		return m.dir.DiscardRun()
	}
	return m.dir.Discard()
}
