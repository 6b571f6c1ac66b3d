package launcher

import (
	"fmt"
	"os"
	"slices"

	"github.com/vmlatch/vmlatch/launcher/confine"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// helper is a helper's process.
type helper struct {
	role string
	*child
}

// forking is a helper on its way.
type forking struct {
	role  string
	files []*os.File
	walls *box
	done  chan struct{} // closed when what follows is known
	pid   int
	err   error
}

// help starts the helpers, next to what follows: [starter.helped] waits for them. Each keeps only
// its own descriptors.
func (s *starter) help(log *os.File) error {
	for i := range s.plan.Helpers {
		h := &s.plan.Helpers[i]
		s.step("helper")
		f := &forking{role: h.Role, walls: s.box(h.Meaning, h.Confinement), done: make(chan struct{})}
		var err error
		if f.files, err = s.openAll(h.FDs); err != nil {
			closeAll(f.files)
			_ = s.helped()
			return s.failed(fmt.Errorf("helper %s: %w", h.Role, err))
		}
		s.helpers = append(s.helpers, f)
		state := slices.IndexFunc(h.FDs, func(d plan.FD) bool { return d.Role == plan.RoleTPMState })
		if f.walls != nil && state >= 0 && os.Geteuid() == 0 {
			f.walls.give = func(uid int) error { return s.dir.GiveTPM(f.files[state], uid) }
		}
		c := &command{
			argv: h.Argv, files: f.files, log: log, env: confine.Environ(), foreground: s.opt.Foreground, box: f.walls,
		}
		if h.Silent {
			c.log = nil
		}
		if s.opt.Foreground { // it ends with the thread that forks it
			f.fork(c)
		} else {
			go f.fork(c)
		}
	}
	return nil
}

func (f *forking) fork(c *command) {
	defer close(f.done)
	f.pid, f.err = c.fork()
	closeAll(f.files)
}

// helped waits until the helpers run. An error is of one that does not; the others are the
// machine's all the same.
func (s *starter) helped() (err error) {
	for _, f := range s.helpers {
		<-f.done
		switch {
		case f.err == nil:
			if id, err := rundir.Identify(f.pid); err == nil { // else it has ended: see helperEnded
				s.machine.rec.Helpers[f.role] = id
			}
			s.machine.helpers = append(s.machine.helpers, helper{f.role, reap(f.pid, make(chan struct{}))})
			if f.walls != nil {
				s.machine.rec.HelpersConfined[f.role] = f.walls.record()
			}
		case err == nil:
			err = s.failed(fmt.Errorf("helper %s: %w", f.role, f.err))
		}
	}
	s.helpers = nil
	return err
}

// helperEnded is an error if a helper has ended, without which the guest would not be
// what was planned.
func (m *Machine) helperEnded() error {
	for _, h := range m.helpers {
		if h.ended() {
			return fmt.Errorf("helper %s ended", h.role)
		}
	}
	return nil
}
