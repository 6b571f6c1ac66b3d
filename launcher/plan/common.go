package plan

import (
	"os"
	"path/filepath"

	"github.com/vmlatch/vmlatch/launcher/internal/argv"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// Common are devices that a word switches on.
type Common struct {
	RNG      bool   // randomness from the host, which a confidential guest counts for nothing
	VMGenID  bool   // tells the guest that it is not the one it was, after a restore
	Watchdog string // what happens to a guest that hangs; "" for no watchdog
	Panic    string // what happens to a guest that says that it panics; "" for no such device
}

// What watchdogs and panics do (QEMU, qapi/run-state.json).
var (
	watchdogActions = []string{"reset", "poweroff", "pause", "none"}
	panicActions    = []string{"pause", "shutdown", "none"}
)

func (c *Common) complete(g *Guest) error {
	if c.Watchdog != "" {
		if err := OneOf(g.File, "watchdog", c.Watchdog, watchdogActions...); err != nil {
			return err
		}
	}
	if c.Panic != "" {
		return OneOf(g.File, "panic", c.Panic, panicActions...)
	}
	return nil
}

func (c *Common) build(b *Builder) error {
	if c.RNG {
		b.Option("-object", "rng-builtin,id=rng0", "-device", "virtio-rng-pci,id=dev-rng0,rng=rng0")
	}
	if c.VMGenID {
		b.Option("-device", "vmgenid,id=vmgenid0,guid=auto")
	}
	if c.Watchdog != "" {
		b.Option("-device", "i6300esb,id=watchdog0", "-action", "watchdog="+c.Watchdog)
	}
	if c.Panic != "" {
		b.Option("-device", "pvpanic-pci,id=panic0", "-action", "panic="+c.Panic)
	}
	return nil
}

// Display is the table [display]: a screen, for plain VMs.
type Display struct {
	VNC string `toml:"vnc"` // unix: a socket in the VM's run directory

	on bool
}

// On reports whether the guest has a screen.
func (d *Display) On() bool { return d.on }

// vncUnix is the only kind: who may open the socket is who owns the VM.
const vncUnix = "unix"

func (d *Display) complete(g *Guest) error {
	if d.on = g.File.Has("display"); !d.on {
		return nil
	}
	if d.VNC == "" {
		d.VNC = vncUnix
	}
	return OneOf(g.File, "display.vnc", d.VNC, vncUnix)
}

func (d *Display) build(b *Builder) error {
	if d.on {
		socket := filepath.Join(b.InDir(rundir.ScreenDir), rundir.VNCSocket)
		b.Option("-vnc", argv.New("unix:"+socket).String(), "-device", "VGA,id=vga0",
			"-device", "qemu-xhci,id=xhci0", "-device", "usb-tablet,id=tablet0", "-device", "usb-kbd,id=keyboard0")
	}
	return nil
}

// Agent is the table [agent]: a port for QEMU's guest agent, for plain VMs.
type Agent struct{ on bool }

// On reports whether the guest has the port.
func (a *Agent) On() bool { return a.on }

func (a *Agent) complete(g *Guest) error {
	a.on = g.File.Has("agent")
	return nil
}

func (a *Agent) build(b *Builder) error {
	if !a.on {
		return nil
	}
	fd := b.Inherit("agent", "the port of the guest's agent, a listening socket", func(o *Opening) (*os.File, error) {
		return listen(o.Dir.Path(rundir.AgentSocket))
	})
	b.Option("-chardev", argv.New("socket").Set("id", "agent").SetInt("fd", fd).SetBool("server", true).
		SetBool("wait", false).String(), "-device", "virtio-serial-pci,id=agent-bus",
		"-device", "virtserialport,bus=agent-bus.0,chardev=agent,name=org.qemu.guest_agent.0")
	return nil
}
