package plan

import (
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/internal/argv"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/qmp"
)

// FD is a descriptor that a process of the VM inherits.
type FD struct {
	Number  int    `json:"fd"`
	Role    string `json:"role"`
	Meaning string `json:"meaning"`

	step string // of a start, that this one is; "" for none of its own
	open Opener
}

// Step is the step of a start that opening the descriptor is; "" if it is none of its
// own.
func (f FD) Step() string { return f.step }

// Open makes what the descriptor stands for. The caller closes it.
func (f FD) Open(o *Opening) (*os.File, error) { return f.open(o) }

// Opener makes what a descriptor stands for, when a plan is carried out.
type Opener func(*Opening) (*os.File, error)

// Opening is what openers work with. The ends that stay with the launcher are found
// by their role.
type Opening struct {
	Dir   *rundir.Dir
	Kept  map[string]net.Conn // connections to the VM's processes
	Read  map[string]*os.File // pipes from them
	pairs map[string]*os.File // the other ends of pairs
	lock  *os.File            // of the helpers
}

// Roles of the descriptors by which the launcher talks to QEMU.
const (
	RoleQMP    = "qmp"
	RoleEvents = "events"
)

// firstFD is the first descriptor behind the standard streams.
const firstFD = 3

// inherit numbers the next descriptor of a list.
func inherit(list *[]FD, f FD) int {
	f.Number = firstFD + len(*list)
	*list = append(*list, f)
	return f.Number
}

// Inherit lets QEMU inherit what open makes, and returns its number there.
func (b *Builder) Inherit(role, meaning string, open Opener) int {
	return inherit(&b.plan.FDs, FD{Role: role, Meaning: meaning, open: open})
}

// channels adds the sockets that QEMU inherits, and the descriptor that only has to
// stay open: the lock.
func (b *Builder) channels() {
	b.Inherit("vm-lock", "the lock that shows whether the VM is alive", func(o *Opening) (*os.File, error) {
		return duplicate(o.Dir.VMLockFile())
	})
	socket := func(id string, fd int) *argv.Option { return argv.New("socket").Set("id", id).SetInt("fd", fd) }
	server := func(id, name, meaning string) *argv.Option {
		fd := b.Inherit(id, meaning+", a listening socket", func(o *Opening) (*os.File, error) {
			return listen(o.Dir.Path(name))
		})
		return socket(id, fd).SetBool("server", true).SetBool("wait", false)
	}
	monitor := func(id string, chardev *argv.Option) {
		b.Option("-chardev", chardev.String(), "-mon", "chardev="+id+",mode=control")
	}
	monitor(RoleQMP, server(RoleQMP, rundir.QMPSocket, "vmlatch's monitor"))
	monitor("monitor", server("monitor", rundir.MonitorSocket, "a monitor for people and their tools"))
	events := b.Inherit(RoleEvents, "a monitor that writes events to a log", func(o *Opening) (*os.File, error) {
		own, theirs, err := qmp.Pair()
		if err == nil {
			o.Kept[RoleEvents] = own
		}
		return theirs, err
	})
	monitor(RoleEvents, b.logged(socket(RoleEvents, events), rundir.EventsLog))
	console := server("console", rundir.ConsoleSocket, "the guest's serial console")
	b.Option("-chardev", b.logged(console, rundir.ConsoleLog).String(), "-serial", "chardev:console")
}

// RoleQtest is the connection by which a QEMU is driven that runs no guest.
const RoleQtest = "qtest"

// AddQtest lets a plan's QEMU be driven over a connection, which the launcher keeps.
func (p *Plan) AddQtest() {
	fd := inherit(&p.FDs, FD{
		Role: RoleQtest, Meaning: "a connection that drives QEMU's ports and memory",
		open: func(o *Opening) (*os.File, error) {
			own, theirs, err := qmp.Pair()
			if err == nil {
				o.Kept[RoleQtest] = own
			}
			return theirs, err
		},
	})
	// QEMU 7.2 wants this very id.
	p.Argv = append(p.Argv, "-chardev", argv.New("socket").Set("id", "qtest").SetInt("fd", fd).String(),
		"-qtest", "chardev:qtest", "-qtest-log", "none")
}

// duplicate is another descriptor of the same open file, so of the same lock.
func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// listen makes a listening socket for the child. The net package would register it
// with its poller, for nothing.
func listen(path string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), path)
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err == nil {
		err = unix.Listen(fd, 16)
	}
	if err != nil {
		_ = f.Close()
		return nil, &os.PathError{Op: "listen", Path: path, Err: err}
	}
	return f, nil
}

// readable makes a pipe whose other end the launcher reads.
func (o *Opening) readable(role string) (*os.File, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_, _ = unix.Close(fds[0]), unix.Close(fds[1])
		return nil, os.NewSyscallError("fcntl", err)
	}
	if o.Read == nil {
		o.Read = map[string]*os.File{}
	}
	o.Read[role] = os.NewFile(uintptr(fds[0]), role)
	return os.NewFile(uintptr(fds[1]), role), nil
}
