package front

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/swtee/internal/cmdline"
)

// Args is a command line for QEMU, whose QMP monitors are taken over.
type Args struct {
	list     []string
	monitors []monitor
	control  map[string]bool // chardevs of QMP monitors
}

// monitor is a QMP monitor that clients reach through this program.
type monitor struct {
	chardev string // its id
	fd      int    // inherited socket; -1 if path is set
	path    string // unix socket to listen on
	listen  bool   // server=on: fd or path is listened on
	arg     int    // index in list of the chardev's new address
	rest    string // its other options
}

// NewArgs begins a command line; the options are those that the caller was given.
func NewArgs(opts []cmdline.Option) *Args {
	a := &Args{control: map[string]bool{}}
	for _, o := range opts {
		if kvs := cmdline.Split(o.Value); o.Name == "mon" && kvs.Get("mode") == "control" {
			a.control[cmp.Or(kvs.Get("chardev"), kvs.Type())] = true // it may stand first, bare
		}
	}
	return a
}

// Add adds arguments.
func (a *Args) Add(args ...string) { a.list = append(a.list, args...) }

// Keep adds an option as it was given.
func (a *Args) Keep(o cmdline.Option) { a.Add(o.Args()...) }

// List are the arguments so far. Those of monitors are filled in when QEMU starts.
func (a *Args) List() []string { return a.list }

// TakeChardev adds a chardev. The socket of a monitor is kept, and QEMU gets a new address in its
// place; other options of the chardev, such as logfile, stay.
func (a *Args) TakeChardev(o cmdline.Option) error {
	kvs := cmdline.Split(o.Value)
	id := kvs.Get("id")
	if !a.control[id] {
		a.Keep(o)
		return nil
	}
	if len(kvs) == 0 || kvs[0].Key != "socket" {
		return fmt.Errorf("-chardev %s: swtee can take over QMP monitors on unix sockets only", o.Value)
	}
	m := monitor{chardev: id, fd: -1, path: kvs.Get("path"), arg: len(a.list) + 1}
	if server := kvs.Get("server"); server == "on" || slices.Contains(kvs, cmdline.Element{Key: "server", Bare: true}) {
		m.listen = true
	}
	if fd := kvs.Get("fd"); fd != "" {
		n, err := strconv.Atoi(fd)
		if err != nil || n < 3 {
			return fmt.Errorf("-chardev %s: fd must be the number of an inherited socket", o.Value)
		}
		m.fd = n
	} else if m.path == "" || !m.listen {
		return fmt.Errorf("-chardev %s: needs fd=, or path= with server=on", o.Value)
	}
	m.rest = kvs.Drop("path", "fd", "server", "wait", "nowait", "reconnect", "reconnect-ms").String()
	a.monitors = append(a.monitors, m)
	a.Add("-chardev", "") // filled in when QEMU starts
	return nil
}

// TakeQMP expands the short form for a listening unix socket.
func (a *Args) TakeQMP(o cmdline.Option) error {
	kvs := cmdline.Split(o.Value)
	path, ok := "", false
	if len(kvs) > 0 {
		path, ok = strings.CutPrefix(kvs[0].Key, "unix:")
	}
	if !ok {
		return fmt.Errorf("-qmp %s: swtee can take over unix:PATH,server=on,wait=off only", o.Value)
	}
	id := fmt.Sprintf("swtee-qmp%d", len(a.monitors))
	long := cmdline.Elements{{Key: "socket", Bare: true}, {Key: "id", Value: id}, {Key: "path", Value: path}}
	long = append(long, kvs[1:]...)
	a.control[id] = true
	if err := a.TakeChardev(cmdline.Option{Name: "chardev", Value: long.String()}); err != nil {
		return err
	}
	a.Add("-qmp", "chardev:"+id)
	return nil
}

// socket gives QEMU an inherited socket in place of a monitor's address.
func (a *Args) socket(m *monitor, fd int) { a.list[m.arg] = fmt.Sprintf("%s,fd=%d", m.rest, fd) }
