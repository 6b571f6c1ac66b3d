package guestdev

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/bzimage"
	"github.com/vmlatch/vmlatch/firmware/swtee/port"
)

// Interface is a way in which a guest asks for evidence.
type Interface string

// Interfaces.
const (
	ConfigfsTSM Interface = "configfs-tsm" // SEV-SNP and TDX, Linux 6.7 and newer
	SEVGuest    Interface = "sev-guest"    // /dev/sev-guest
	RTMRs       Interface = "rtmr"         // TDX, Linux 6.16 and newer
)

// Interfaces lists all interfaces.
func Interfaces() []Interface { return []Interface{ConfigfsTSM, SEVGuest, RTMRs} }

// Options say where things are.
type Options struct {
	Interfaces []Interface // none: those that a kernel like this one has on silicon
	Port       string      // the device of the port; "" to look for it
	Configfs   string      // where configfs is mounted; "" for its usual place
	Log        string      // the file that says what is emulated; "" for the kernel's log
}

// Devices are interfaces that are being served.
type Devices struct {
	About port.About
	Made  []Interface

	failed chan error
	undo   []func()
}

// DefaultConfigfs is where configfs is usually mounted.
const DefaultConfigfs = "/sys/kernel/config"

// Errors of Up.
var (
	ErrNoPort     = errors.New("this machine has no port " + port.Name + ": it was not started by swtee --accel twin")
	ErrTechnology = errors.New("guests of this technology cannot ask for evidence")
)

// patience is how long the kernel may take to show devices.
const patience = 5 * time.Second

// Up makes the interfaces, and returns once programs can use them. They are served until Close, by
// this process: other processes must use them.
func Up(opt Options) (_ *Devices, err error) {
	name := opt.Port
	if name == "" {
		if name, err = findPort(); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	d := &Devices{failed: make(chan error, len(Interfaces()))}
	d.undo = append(d.undo, func() { _ = f.Close() })
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	p, err := newPlatform(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if d.About = p.About; providers[p.Technology] == "" {
		return nil, fmt.Errorf("%w: %s", ErrTechnology, p.Technology)
	}
	wanted := opt.Interfaces
	if wanted == nil {
		wanted = likeHere(p.Technology)
	}
	for _, i := range wanted {
		if err := d.make(i, p, opt); err != nil {
			return nil, fmt.Errorf("%s: %w", i, err)
		}
		d.Made = append(d.Made, i)
	}
	return d, d.tell(opt.Log)
}

// likeHere are the interfaces that a guest with this kernel has on silicon.
func likeHere(technology string) []Interface {
	list := []Interface{ConfigfsTSM}
	switch {
	case technology == snpGuest && exists("/dev/cuse"):
		list = append(list, SEVGuest)
	case technology == tdxGuest && atLeast(6, 16):
		list = append(list, RTMRs)
	}
	return list
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// atLeast reports whether the running kernel is of a release or a newer one.
func atLeast(major, minor int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	newer, known := bzimage.AtLeast(unix.ByteSliceToString(u.Release[:]), major, minor)
	return known && newer
}

// findPort looks for the port's device by its name.
func findPort() (string, error) {
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		found, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, f := range found {
			b, err := os.ReadFile(f)
			if err == nil && strings.TrimSpace(string(b)) == port.Name {
				return filepath.Join("/dev", filepath.Base(filepath.Dir(f))), nil
			}
		}
		if time.Now().After(deadline) {
			return "", ErrNoPort
		}
	}
}

func (d *Devices) make(i Interface, p *platform, opt Options) error {
	switch i {
	case ConfigfsTSM:
		dir := opt.Configfs
		if dir == "" {
			dir = DefaultConfigfs
		}
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: load the module configfs first, whose directory this is", err)
		}
		return d.mount(newTSM(p), dir)
	case RTMRs:
		return d.mount(&registerTree{p}, registersDir)
	case SEVGuest:
		return d.device(p)
	}
	return errors.New("no such interface")
}

func (d *Devices) mount(t tree, dir string) error {
	c, m, err := mount(t, dir)
	if err != nil {
		return err
	}
	d.serve(c, m.answer)
	d.undo = append(d.undo, func() { _ = m.unmount() })
	return nil
}

// device makes /dev/sev-guest.
func (d *Devices) device(p *platform) error {
	const name = "/dev/sev-guest"
	if exists(name) {
		return fmt.Errorf("%s: %w", name, fs.ErrExist)
	}
	c, err := openChannel("/dev/cuse")
	if err != nil {
		return fmt.Errorf("%w: load the module cuse first", err)
	}
	c.connected()
	d.serve(c, (&device{p}).answer)
	for deadline := time.Now().Add(patience); !exists(name); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not appear", name)
		}
	}
	return nil
}

func (d *Devices) serve(c *channel, answer func(context.Context, message) ([]byte, unix.Errno)) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.failed <- c.serve(answer)
	}()
	d.undo = append(d.undo, func() {
		_ = c.dev.Close()
		<-ended
	})
}

// tell says what is emulated.
func (d *Devices) tell(name string) error {
	if name == "" {
		name = "/dev/kmsg"
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	var names []string
	for _, i := range d.Made {
		names = append(names, string(i))
	}
	_, err = fmt.Fprintf(f, "swtee: EMULATED %s: %s. Memory is plain, and nothing is proven.\n", d.About.Technology,
		strings.Join(names, ", "))
	return errors.Join(err, f.Close())
}

// Wait waits until the interfaces cannot be served any more.
func (d *Devices) Wait() error { return <-d.failed }

// Close ends them.
func (d *Devices) Close() {
	for i := len(d.undo) - 1; i >= 0; i-- {
		d.undo[i]()
	}
	d.undo = nil
}
