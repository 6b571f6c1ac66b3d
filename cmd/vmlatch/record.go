package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/firstboot"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// record is what ps and inspect print of a VM's record (vmlatch.vm/1, published by
// "vmlatch ps --schema"). How vmlatch keeps records is not part of it.
type record struct {
	Schema     string     `json:"schema"`
	Name       string     `json:"name"`
	Technology string     `json:"technology"`
	Emulated   bool       `json:"emulated"`
	State      string     `json:"state"`
	Settled    bool       `json:"settled"`
	Latch      latchState `json:"latch"`
	Started    time.Time  `json:"started"`
	Released   *time.Time `json:"released,omitempty"`
	PID        int        `json:"pid"`
	Origin     origin     `json:"origin"`
	QEMU       string     `json:"qemu"`
	Version    string     `json:"qemu-version"`
	Memory     string     `json:"memory"`
	CPUs       int        `json:"cpus"`
	SEV        *sevState  `json:"sev,omitempty"`
	Argv       []string   `json:"argv"`
	Choices    []choice   `json:"choices,omitempty"`
	Disks      []disk     `json:"disks,omitempty"`
	Networks   []network  `json:"networks,omitempty"`
	VSock      uint32     `json:"vsock,omitempty"` // the guest's CID
	TPM        *tpm       `json:"tpm,omitempty"`
	Slot       string     `json:"slot,omitempty"`
	// Confinement is how QEMU was confined at its start, or else Unconfined says why it was not.
	Confinement *confinement `json:"confinement,omitempty"`
	Unconfined  string       `json:"unconfined,omitempty"`
	// HelpersConfined are those of its helpers that it confines, by their roles.
	HelpersConfined map[string]confinement `json:"helpers-confined,omitempty"`
	Group           string                 `json:"cgroup,omitempty"` // directory of the one that [limits] made
	Steps           []stepAt               `json:"steps,omitempty"`
}

type stepAt struct {
	Name string    `json:"step"`
	At   time.Time `json:"at"`
}

type disk struct {
	Image     string `json:"image"`
	Format    string `json:"format"`
	ReadOnly  bool   `json:"read-only,omitempty"`
	Bus       string `json:"bus,omitempty"`
	Ephemeral bool   `json:"ephemeral,omitempty"`
	Device    string `json:"device,omitempty"`
}

type network struct {
	Mode       string   `json:"mode"`
	MAC        string   `json:"mac,omitempty"`
	Forward    []string `json:"forward,omitempty"`
	Bridge     string   `json:"bridge,omitempty"`
	Interface  string   `json:"interface,omitempty"`
	Link       string   `json:"link,omitempty"`
	Restricted bool     `json:"restricted,omitempty"`
}

type tpm struct {
	Model     string `json:"model"`
	State     string `json:"state"`
	Encrypted bool   `json:"encrypted"`
	Trust     string `json:"trust"` // always "host"
}

// failure is a start that came to nothing.
type failure struct {
	At     time.Time `json:"at"`
	Spec   string    `json:"spec,omitempty"`
	Reason string    `json:"reason"`
	Hints  []string  `json:"hints,omitempty"`
	Code   int       `json:"exit-code"`
}

func publishFailure(f *rundir.Failure) *failure {
	if f == nil {
		return nil
	}
	return &failure{At: f.At, Spec: f.Spec, Reason: f.Reason, Hints: f.Hints, Code: f.Code}
}

type latchState struct {
	Until     string `json:"until"`
	Open      bool   `json:"open"`
	Verified  bool   `json:"verified"`
	Proof     string `json:"proof,omitempty"`
	Statement string `json:"statement,omitempty"`
}

type origin struct {
	Spec       string `json:"spec"`
	Hold       bool   `json:"hold,omitempty"`
	Foreground bool   `json:"foreground,omitempty"`
	Unit       string `json:"unit,omitempty"`
}

type choice struct {
	What  string `json:"what"`
	Value string `json:"value"`
	From  string `json:"from"`
}

type sevState struct {
	Build       sev.Build     `json:"firmware"`
	Policy      sev.Policy    `json:"policy"`
	SNPPolicy   sev.SNPPolicy `json:"snp-policy,omitempty"`
	Measurement []byte        `json:"measurement,omitempty"`
	Secret      bool          `json:"secret-injected"`
	Packet      []byte        `json:"packet,omitempty"`
	Inputs      inputFiles    `json:"inputs"`
}

type inputFiles struct {
	Firmware     string `json:"firmware"`
	Kernel       string `json:"kernel,omitempty"`
	Initrd       string `json:"initrd,omitempty"`
	Cmdline      string `json:"cmdline,omitempty"`
	KernelHashes bool   `json:"kernel-hashes"`

	Config *firstboot.Config `json:"config,omitempty"`
}

// recordSchema names the published format.
const recordSchema = "vmlatch.vm/1"

// publish makes the published form of a record; nil of none.
func publish(r *rundir.Record) *record {
	if r == nil {
		return nil
	}
	p := &record{
		Schema: recordSchema, Name: r.Name, Technology: r.Technology, Emulated: r.Emulated, State: r.State,
		Settled: r.Settled, Latch: latchState(r.Latch), Started: r.Started, Released: r.Released, PID: r.PID,
		Origin: origin(r.Origin), QEMU: r.QEMU, Version: r.Version, Memory: r.Memory, CPUs: r.CPUs, Argv: r.Argv,
		VSock: r.VSock, Slot: r.Slot, Unconfined: r.Unconfined, Group: r.Group,
	}
	if s := r.SEV; s != nil {
		p.SEV = &sevState{
			Build: s.Build, Policy: s.Policy, SNPPolicy: s.SNPPolicy, Measurement: s.Measurement, Secret: s.Secret,
			Packet: s.Packet,
			Inputs: inputFiles(s.Inputs),
		}
	}
	if r.TPM != nil {
		t := tpm(*r.TPM)
		p.TPM = &t
	}
	if r.Confinement != nil {
		c := confinement(*r.Confinement)
		p.Confinement = &c
	}
	for role, c := range r.HelpersConfined {
		if p.HelpersConfined == nil {
			p.HelpersConfined = map[string]confinement{}
		}
		p.HelpersConfined[role] = confinement(*c)
	}
	for _, c := range r.Choices {
		p.Choices = append(p.Choices, choice(c))
	}
	for _, d := range r.Disks {
		p.Disks = append(p.Disks, disk(d))
	}
	for _, n := range r.Networks {
		p.Networks = append(p.Networks, network(n))
	}
	for _, step := range r.Steps {
		p.Steps = append(p.Steps, stepAt(step))
	}
	return p
}

// wide are the columns of ps --wide.
func (r *record) wide() string {
	if r == nil {
		return "\t-\t-"
	}
	var disks, networks []string
	for _, d := range r.Disks {
		disks = append(disks, filepath.Base(d.Image))
	}
	for _, n := range r.Networks {
		text := n.way()
		for _, f := range n.Forward {
			_, ports, _ := strings.Cut(f, ":")
			text += " " + ports
		}
		networks = append(networks, text)
	}
	if r.VSock != 0 {
		networks = append(networks, fmt.Sprintf("vsock %d", r.VSock))
	}
	column := func(list []string) string {
		if len(list) == 0 {
			return "\t-"
		}
		return "\t" + cli.Escape(strings.Join(list, ", "))
	}
	return column(disks) + column(networks)
}

// way is a network's mode, and what it is on: a bridge, an interface or another VM.
func (n *network) way() string {
	return strings.TrimSpace(n.Mode + " " + n.Bridge + n.Interface + n.Link)
}

func (n *network) text() string {
	text := n.way()
	if n.Restricted {
		text += ", reaches nothing"
	}
	if n.MAC != "" {
		text += ", MAC " + n.MAC
	}
	for _, f := range n.Forward {
		text += ", forwards " + f
	}
	return text
}
