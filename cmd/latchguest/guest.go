package main

import (
	"crypto/rand"
	"crypto/sha512"
	"errors"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/smallfmt"
)

// paths are where Linux has what the guest needs.
type paths struct {
	cmdline string
	ports   string // class directory of virtio ports
	devices string // directory of their devices
	reports string // configfs-tsm
	sev     string // device of the SNP guest driver
	ccel    string // event log
	rtmr3   string
	coco    string // secrets that were injected
	mem     string
	scripts string // initramfs-tools
	dracut  string
	systemd string // is there if systemd is init
	units   string // directory of systemd's units
	run     string // directory in memory, where headers lie while they are used
	volumes string // directory of open volumes
	helper  string // latchguest-tpm
	tpm     string

	config      string // directory of what configures the first boot, in the initrd
	seed        string // where cloud-init finds it
	credentials string // systemd's directory
	serial      string // the machine's, which its host chooses
}

func linux() paths {
	return paths{
		cmdline: "/proc/cmdline", ports: "/sys/class/virtio-ports", devices: "/dev",
		reports: "/sys/kernel/config/tsm/report", sev: "/dev/sev-guest",
		ccel:  "/sys/firmware/acpi/tables/data/CCEL",
		rtmr3: "/sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384",
		coco:  "/sys/kernel/security/secrets/coco", mem: "/dev/mem",
		scripts: "/scripts/functions", dracut: "/usr/lib/dracut-lib.sh",
		systemd: "/run/systemd/system", units: "/etc/systemd/system",
		run: "/run/latchguest", volumes: "/dev/mapper", helper: helper, tpm: "/dev/tpmrm0",
		config: "/vmlatch", seed: "/run/vmlatch/seed", credentials: "/run/credentials",
		serial: "/sys/class/dmi/id/product_serial",
	}
}

// guest does the work.
type guest struct {
	paths
	out   io.Writer     // the console
	reply time.Duration // for the broker's first answer
	judge time.Duration // for its verdict
	now   func() time.Time
	sleep func(time.Duration)
	off   func()                                                // turns the power off; nil for the real one
	dial  func(exchange.Way) (*stream, error)                   // nil for the real one
	tsm   reporter                                              // nil for those that are there
	crypt func(header, device, volume string, key []byte) error // opens a volume; nil for cryptsetup
}

func (g *guest) say(format string, args ...any) {
	_, _ = io.WriteString(g.out, "latchguest: "+smallfmt.Sprintf(format, args...)+"\n")
}

// fail says why, and turns the power off.
func (g *guest) fail(err error) {
	g.say("%v", err)
	if h := find[*hinted](err); h != nil {
		g.say("hint: %s", h.hint)
	}
	g.say("this guest gets no secret, and powers off")
	if g.off != nil {
		g.off()
		return
	}
	unix.Sync()
	shown(2)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	for { // without the right to, at least nothing goes on
		time.Sleep(time.Hour)
	}
}

// shown waits until a terminal has sent what was written to it. A serial console takes its time,
// and the power would go in the middle of a sentence. A host that reads nothing does not keep the
// guest on.
func shown(fd int) {
	const tick, ticks = 10 * time.Millisecond, 200
	for range ticks {
		n, err := unix.IoctlGetInt(fd, unix.TIOCOUTQ) // but for what the chip has (ioctl_tty(2))
		if err != nil {
			return
		}
		time.Sleep(tick)
		if n == 0 {
			return
		}
	}
}

// hinted is an error with what to do.
type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

func hint(err error, text string) error { return &hinted{err, text} }

// find is the first error of a kind in a tree of errors; the zero value for none. errors.As links
// reflection.
func find[E error](err error) (found E) {
	if e, ok := err.(E); ok {
		return e
	}
	var list []error
	switch u := err.(type) {
	case interface{ Unwrap() error }:
		list = []error{u.Unwrap()}
	case interface{ Unwrap() []error }:
		list = u.Unwrap()
	}
	for _, inner := range list {
		if e := find[E](inner); error(e) != error(found) {
			return e
		}
	}
	return found
}

// get gets the secrets and hands them on.
func (g *guest) get(o *options, line string) error {
	w, err := exchange.ParseWords(line)
	if err != nil {
		return err
	}
	end, stop, err := g.guard(o, line)
	if err != nil {
		return err
	}
	defer stop()
	var names []string
	for name := range o.files {
		names = append(names, name)
	}
	var values map[string]exchange.Secret
	if w.Source == exchange.FromInjected {
		values, err = g.injected(w, line, names)
	} else {
		values, err = g.released(w, names, end)
	}
	if err != nil {
		return err
	}
	defer exchange.Wipe(values)
	return g.handOn(o, values, end)
}

// retry tries until it works, for some time and not beyond an end.
func (g *guest) retry(limit time.Duration, end time.Time, try func() error) error {
	by := g.now().Add(limit)
	if end.Before(by) {
		by = end
	}
	for {
		if err := try(); err == nil || g.now().After(by) {
			return err
		}
		g.sleep(250 * time.Millisecond)
	}
}

// released asks the broker until it answers, or the time is over.
func (g *guest) released(w *exchange.Words, names []string, end time.Time) (map[string]exchange.Secret, error) {
	t, err := g.reporter(w.Host, end)
	if err != nil {
		return nil, err
	}
	rtmr := t.technology() == exchange.TDX && !w.NoClose
	if rtmr && !exists(g.rtmr3) {
		return nil, hint(errors.New("this kernel cannot extend RTMR3, so code that comes later could ask, too"),
			"use Linux 6.16 or newer, or accept that by latch.close=no on the command line")
	}
	seed, err := newSeed()
	if err != nil {
		return nil, err
	}
	a, err := exchange.NewAgent(exchange.AgentConfig{
		Broker: w.Key, Name: w.Name, Technology: t.technology(), Secrets: names, KEM: w.KEM, Seed: seed,
	})
	if err != nil {
		return nil, err
	}
	defer a.Wipe()
	c := &client{g: g, agent: a, way: w.Broker, tsm: t, end: end}
	defer c.close()
	values, receipt, err := c.ask()
	if err != nil {
		return nil, err
	}
	if rtmr {
		closing := sha512.Sum384([]byte("vmlatch closed v1"))
		err = writeFile(g.rtmr3, closing[:])
	} else if w.Host {
		_, err = g.ask("close")
	}
	if err != nil {
		exchange.Wipe(values)
		return nil, smallfmt.Errorf("the launch cannot be closed: %w", err)
	}
	c.receipt(receipt)
	return values, nil
}

// newSeed is what the key is made of: the kernel's randomness, and the processor's own next to it,
// for all other devices of a guest are its host's.
func newSeed() ([]byte, error) {
	if !hasRDRAND() {
		return nil, hint(errors.New("the processor has no RDRAND, so the host could know all randomness"),
			"give the guest a CPU model that has it, such as EPYC-Milan or host")
	}
	seed := make([]byte, 64)
	_, _ = rand.Read(seed[:32]) // never fails (crypto/rand)
	if !rdrandFill(seed[32:]) {
		return nil, errors.New("RDRAND gives no randomness")
	}
	return seed, nil
}

// rdrandFill fills bytes from RDRAND. The instruction may fail a few times in a row; Intel's guide
// asks for ten attempts.
func rdrandFill(b []byte) bool {
	for len(b) > 0 {
		ok, v := false, uint64(0)
		for range 10 {
			if v, ok = rdrand(); ok {
				break
			}
		}
		if !ok {
			return false
		}
		for i := range min(8, len(b)) {
			b[i] = byte(v >> (8 * i))
		}
		b = b[min(8, len(b)):]
	}
	return true
}
