package plan

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/launcher/internal/argv"
)

// Broker is the table [broker]: where the broker of the guest's owner listens. For SEV and SEV-ES
// the launcher asks it on the guest's behalf; other guests ask it themselves, by a port that QEMU
// connects.
type Broker struct {
	Connect string `toml:"connect"` // tcp:HOST:PORT or unix:PATH
}

// RoleBroker is the pipe by which the launcher sees what the guest sends to its broker.
const RoleBroker = "broker-log"

// Address is the network and the address of the broker, as package net has them.
func (b *Broker) Address() (network, address string) {
	network, address, _ = strings.Cut(b.Connect, ":")
	return network, address
}

func (b *Broker) complete(g *Guest) error {
	if b.Connect == "" {
		if g.File.Has("broker") {
			return g.File.Errorf("broker.connect", `is missing: "tcp:HOST:PORT" or "unix:PATH"`)
		}
		return nil
	}
	switch network, address := b.Address(); network {
	case "tcp":
		host, port, err := net.SplitHostPort(address)
		if n, e := strconv.ParseUint(port, 10, 16); err != nil || e != nil || n == 0 || host == "" ||
			strings.ContainsAny(host, ", \t") {
			return g.File.Errorf("broker.connect", "%q: must be tcp:HOST:PORT", b.Connect)
		}
	case "unix":
		if address == "" {
			return g.File.Errorf("broker.connect", "%q: must be unix:PATH", b.Connect)
		}
		b.Connect = "unix:" + g.File.Abs(address)
	default:
		return g.File.Errorf("broker.connect", `%q: must be "tcp:HOST:PORT" or "unix:PATH"`, b.Connect)
	}
	if g.Kernel.Image == "" { // firmware alone, or a unified image: what it says cannot be read here
		return nil
	}
	if _, err := g.BrokerWords(); err != nil {
		e := g.File.Errorf("kernel.cmdline", "%v: without its broker's key the guest would believe any broker", err)
		e.Fix = `"latchkey broker key" prints latch.key=…; the guest needs latch.name and latch.broker, too`
		return e
	}
	return nil
}

// BrokerWords are what the guest's command line says of its broker.
func (g *Guest) BrokerWords() (*exchange.Words, error) { return exchange.ParseWords(g.Kernel.Cmdline) }

func (b *Broker) build(p *Builder) error {
	if b.Connect == "" || p.Traits.Measurable {
		return nil
	}
	network, address := b.Address()
	chardev := argv.New("socket").Set("id", "broker")
	if network == "unix" {
		chardev.Set("path", address)
	} else {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return fmt.Errorf("broker.connect: %w", err)
		}
		chardev.Set("host", host).Set("port", port)
	}
	// QEMU connects again by itself: the broker may be started later, or restarted.
	if p.Facts.Info != nil && p.Facts.Info.HasSocket("reconnect-ms") {
		chardev.SetInt("reconnect-ms", 1000)
	} else {
		chardev.SetInt("reconnect", 1)
	}
	if p.Guest.Latch.Until == UntilEvidence {
		fd := p.Inherit(
			RoleBroker,
			"a pipe that shows vmlatch what the guest asks its broker",
			func(o *Opening) (*os.File, error) {
				return o.readable(RoleBroker)
			},
		)
		p.Option("-add-fd",
			argv.Key("fd", strconv.Itoa(fd)).SetInt("set", fd).Set("opaque", p.InDir(RoleBroker)).String())
		chardev.Set("logfile", fmt.Sprintf("/dev/fdset/%d", fd)).SetBool("logappend", true)
	}
	p.Option("-chardev", chardev.String(), "-device", "virtio-serial-pci,id=latch",
		"-device", "virtserialport,bus=latch.0,chardev=broker,name="+exchange.Port)
	p.Choose("broker", b.Connect, p.Guest.File.From("broker.connect"))
	return nil
}
