package launcher

import (
	"errors"
	"os"
	"runtime"
	"syscall"
	"time"

	"github.com/vmlatch/vmlatch/keyring"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/plan"
)

// child is a process that this one started.
type child struct {
	pid  int
	done chan struct{} // closed when it has been reaped
}

// command is what is forked: a command line, and the files that it inherits behind the
// standard streams.
type command struct {
	argv       []string
	files      []*os.File
	log        *os.File // for its output; nil to drop it
	env        []string
	foreground bool // it dies with the thread that forks it
	box        *box // that it runs in; nil for none
}

// fork is syscall.ForkExec because os/exec first forks a child to find out about
// pidfds.
func (c *command) fork() (pid int, err error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	log := c.log
	if log == nil {
		if log, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0); err != nil {
			return 0, err
		}
		defer log.Close()
	}
	if c.box != nil {
		pid, err = c.box.fork(c.argv, append([]*os.File{null, log, log}, c.files...))
	} else {
		pid, err = c.forkBare(null, log)
	}
	if err != nil {
		err = &os.PathError{Op: "exec", Path: c.argv[0], Err: err}
	}
	return pid, err
}

// forkBare forks the program itself, with the rights of this process.
func (c *command) forkBare(null, log *os.File) (pid int, err error) {
	attr := &syscall.ProcAttr{
		Dir: "/", Env: c.env, Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys: &syscall.SysProcAttr{Setsid: true}, // Ctrl-C is for us, not for the VM
	}
	if c.foreground {
		attr.Sys.Pdeathsig = syscall.SIGKILL
	}
	for _, f := range c.files {
		attr.Files = append(attr.Files, f.Fd())
	}
	pid, err = syscall.ForkExec(c.argv[0], c.argv, attr)
	runtime.KeepAlive(c.files)
	runtime.KeepAlive(log)
	return pid, err
}

// reap waits for a process that was forked, in the background.
func reap(pid int, done chan struct{}) *child {
	go func() {
		defer close(done)
		var status syscall.WaitStatus // says less than the event log
		for {
			if _, err := syscall.Wait4(pid, &status, 0, nil); err != syscall.EINTR {
				return
			}
		}
	}()
	return &child{pid, done}
}

// withKey makes a plan's key and calls fork with the command line that names it, on a
// thread of its own that has the key. The thread ends then, and QEMU alone has it; a
// machine in the foreground is tied to the thread that forks it, so there the thread
// ends with the machine, when ended is closed.
func withKey(k *plan.Key, s *starter, fork func(argv []string) (int, error), ended <-chan struct{}) (int, error) {
	if k == nil {
		s.step("fork")
		return fork(s.plan.Argv)
	}
	type result struct {
		pid int
		err error
	}
	forked := make(chan result, 1)
	go func() {
		err := keyring.Apart(func(r *keyring.Ring) error {
			s.step("key")
			serial, err := r.Add(keyring.Key{Type: k.Type, Description: k.Description, Payload: []byte(k.Payload)})
			if err != nil {
				return err
			}
			s.step("fork")
			pid, err := fork(k.Command(s.plan.Argv, serial))
			if err != nil {
				return err
			}
			forked <- result{pid, nil}
			if s.opt.Foreground {
				<-ended
			}
			return nil
		})
		if errors.Is(err, keyring.ErrNoType) {
			err = &fault.Error{
				Kind: fault.Host, Op: "make a key for the guest", Err: err,
				Fix: "this takes a kernel with Intel's patches for such keys; other technologies," +
					" which released kernels have, give a guest a key of its own, too",
			}
		}
		if err != nil {
			forked <- result{0, err}
		}
	}()
	r := <-forked
	return r.pid, r.err
}

// ended reports whether the process has ended.
func (c *child) ended() bool {
	select {
	case <-c.done:
		return true
	case <-time.After(time.Millisecond): // the moment between its end and its being noticed
		return false
	}
}
