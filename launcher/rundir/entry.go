package rundir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vmlatch/vmlatch/firmware/firstboot"
	"github.com/vmlatch/vmlatch/firmware/sev"
)

// Record is what is written down about a VM (record.json, vmlatch.vm/1).
type Record struct {
	Schema     string     `json:"schema"`
	Name       string     `json:"name"`
	Technology string     `json:"technology"`
	Emulated   bool       `json:"emulated"`
	State      string     `json:"state"` // launcher's word: paused, measured, …
	Settled    bool       `json:"settled"`
	Latch      Latch      `json:"latch"`
	Started    time.Time  `json:"started"`
	Released   *time.Time `json:"released,omitempty"`
	PID        int        `json:"pid"` // of QEMU or its emulator; a hint, never proof
	// Process is QEMU's, and decides whether the VM lives. With Wrapped it may be a program that
	// started QEMU, such as a script: then the lock of a QEMU that outlives it counts as well.
	Process *Identity `json:"process,omitempty"`
	Wrapped bool      `json:"wrapped,omitempty"`
	// Helpers are the processes of its helpers, by their roles.
	Helpers  map[string]*Identity `json:"helpers,omitempty"`
	Origin   Origin               `json:"origin"`
	QEMU     string               `json:"qemu"`
	Version  string               `json:"qemu-version"`
	Memory   string               `json:"memory"`
	CPUs     int                  `json:"cpus"`
	SEV      *SEV                 `json:"sev,omitempty"`
	Argv     []string             `json:"argv"`
	Choices  []Choice             `json:"choices,omitempty"`
	Disks    []Disk               `json:"disks,omitempty"`
	Networks []Network            `json:"networks,omitempty"`
	VSock    uint32               `json:"vsock,omitempty"` // the guest's CID
	TPM      *TPM                 `json:"tpm,omitempty"`
	Slot     string               `json:"slot,omitempty"` // the pool of its encryption slot
	// Confinement is how QEMU is confined, as it was found at its start; nil if it is not.
	Confinement *Confinement `json:"confinement,omitempty"`
	Unconfined  string       `json:"unconfined,omitempty"` // says why it is not
	// HelpersConfined are those of its helpers that it confines, by their roles.
	HelpersConfined map[string]*Confinement `json:"helpers-confined,omitempty"`
	// Group is the directory of QEMU's control group, which was made for its limits.
	Group string `json:"cgroup,omitempty"`
	Steps []Step `json:"steps,omitempty"` // of the launch, in the order of time
}

// Confinement is what a start found out about the box that QEMU runs in.
type Confinement struct {
	UID        int      `json:"uid,omitempty"`        // QEMU's own user
	Namespaces []string `json:"namespaces,omitempty"` // of its own
	Files      int      `json:"files"`                // that it can reach by a path, directories counted once
	Landlock   int      `json:"landlock,omitempty"`   // version of the kernel's rules
	Refused    string   `json:"refused,omitempty"`    // the error with which it was refused the VM's record
	Ruled      string   `json:"ruled,omitempty"`      // the error with which Landlock refused it the root directory
	Label      string   `json:"label,omitempty"`      // its AppArmor profile
	Missing    []string `json:"missing,omitempty"`    // what it could do all the same, a sentence each
}

// Step is a step of a launch, and when it began.
type Step struct {
	Name string    `json:"step"`
	At   time.Time `json:"at"`
}

// Disk is a disk of the guest.
type Disk struct {
	Image     string `json:"image"`
	Format    string `json:"format"`
	ReadOnly  bool   `json:"read-only,omitempty"`
	Bus       string `json:"bus,omitempty"` // virtio, scsi, nvme, cdrom
	Ephemeral bool   `json:"ephemeral,omitempty"`
	Device    string `json:"device,omitempty"` // its number, MAJOR:MINOR; "" for a file
}

// Network is a network interface of the guest.
type Network struct {
	Mode       string   `json:"mode"`
	MAC        string   `json:"mac,omitempty"`
	Forward    []string `json:"forward,omitempty"`
	Bridge     string   `json:"bridge,omitempty"`
	Interface  string   `json:"interface,omitempty"`
	Link       string   `json:"link,omitempty"`       // the VM at the other end, of the end that connects
	Restricted bool     `json:"restricted,omitempty"` // the guest reaches nothing
}

// TPM is the guest's TPM, which is the host's: what it says proves the host's word.
type TPM struct {
	Model     string `json:"model"` // crb, tis
	State     string `json:"state"` // persistent, ephemeral
	Encrypted bool   `json:"encrypted"`
	Trust     string `json:"trust"` // always "host"
}

// Origin is how a VM was started, and so how it can be started again.
type Origin struct {
	Spec       string `json:"spec"` // file
	Hold       bool   `json:"hold,omitempty"`
	Foreground bool   `json:"foreground,omitempty"` // of a command that lives as long
	Unit       string `json:"unit,omitempty"`       // of the service manager that watches it
}

// Latch is what holds the VM until it is verified.
type Latch struct {
	Until    string `json:"until"` // secret, id-block, evidence, nothing, or none for plain VMs
	Open     bool   `json:"open"`
	Verified bool   `json:"verified"` // opened by proof, not by omission
	// Proof is what became of the guest's proof to its broker, by the broker's word: proving,
	// released (no receipt yet) or received; "" where none is waited for.
	Proof     string `json:"proof,omitempty"`
	Statement string `json:"statement,omitempty"` // SHA-512 of what it stated, in hex
}

// Choice says where a value of the launch came from.
type Choice struct {
	What  string `json:"what"`
	Value string `json:"value"`
	From  string `json:"from"` // "spec", "host.toml", "default", or a reason
}

// SEV is what the platform said of a SEV launch.
type SEV struct {
	Build       sev.Build     `json:"firmware"`
	Policy      sev.Policy    `json:"policy"`
	SNPPolicy   sev.SNPPolicy `json:"snp-policy,omitempty"`  // instead, for SEV-SNP
	Measurement []byte        `json:"measurement,omitempty"` // 48 bytes
	Secret      bool          `json:"secret-injected"`
	Packet      []byte        `json:"packet,omitempty"` // its SHA-256
	Inputs      Inputs        `json:"inputs"`
}

// Inputs are the files that a launch measurement covers.
type Inputs struct {
	Firmware     string `json:"firmware"`
	Kernel       string `json:"kernel,omitempty"`
	Initrd       string `json:"initrd,omitempty"`
	Cmdline      string `json:"cmdline,omitempty"`
	KernelHashes bool   `json:"kernel-hashes"`

	Config *firstboot.Config `json:"config,omitempty"` // of the first boot, before the initrd
}

// RecordSchema names the format of records.
const RecordSchema = "vmlatch.vm/1"

// Status is what the locks and the record say of a VM.
type Status string

// Statuses of an entry.
const (
	Launching Status = "launching" // a command is at work on it
	Abandoned Status = "abandoned" // its launcher died; the next command ends it
	Alive     Status = "alive"
	Ended     Status = "ended"
)

// Entry is one VM as found.
type Entry struct {
	Name       string
	VMHeld     bool
	LaunchHeld bool
	Record     *Record // nil if its launch did not get that far
	// Staged is what a command was about to record when it ended, or is: nil if none.
	Staged *Record
	// LostLock is whether its QEMU has let go of its lock, and Stranger whether a process has the
	// lock that is not its QEMU, which has ended: neither happens to a QEMU that is what it was.
	LostLock, Stranger bool
	// Failure is the last start of the name, if it came to nothing after Record.
	Failure *Failure
}

// Status derives the VM's status from both locks and the record.
func (e *Entry) Status() Status {
	settled := e.Record != nil && e.Record.Settled
	switch {
	case e.VMHeld && settled:
		return Alive
	case e.LaunchHeld:
		return Launching
	case e.VMHeld:
		return Abandoned
	}
	return Ended
}

const maxRecord = 1 << 20

// entry reads the state of a directory; the caller holds the global lock, or
// takes the answer for a guess.
func (d *Dir) entry() (*Entry, error) {
	info, err := os.Lstat(d.Run)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", d.Name, ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s: is not a directory", d.Run)
	}
	if _, err := os.Lstat(d.Path(LaunchLock)); err != nil {
		return nil, fmt.Errorf("%s: %w: %s is not a VM's directory", d.Name, ErrNotFound, d.Run)
	}
	e := &Entry{Name: d.Name}
	if e.VMHeld, err = held(d.Path(VMLock)); err != nil {
		return nil, err
	}
	if d.launch != nil {
		e.LaunchHeld = true
	} else if e.LaunchHeld, err = held(d.Path(LaunchLock)); err != nil {
		return nil, err
	}
	if e.Record, err = readRecord(d.Path(recordFile)); err == nil {
		e.Staged, err = readRecord(d.Path(recordTemporary))
	}
	d.judge(e)
	return e, err
}

func (r Root) lookup(ctx context.Context, d *Dir) (*Entry, error) {
	unlock, err := r.lock(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", d.Name, ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	defer unlock()
	e, err := d.entry()
	if err == nil {
		err = d.pin()
	}
	return e, err
}

// Find returns one VM's directories and state, without taking a lock. The caller
// closes the Dir.
func (r Root) Find(ctx context.Context, name string) (*Dir, *Entry, error) {
	if err := CheckName(name); err != nil {
		return nil, nil, err
	}
	d := r.dir(name)
	e, err := r.lookup(ctx, d)
	if errors.Is(err, ErrNotFound) {
		err = d.notAlive()
	}
	if err != nil {
		return nil, nil, err
	}
	return d, e, nil
}

// endedEntry is what is left of a VM that has ended, or of a start that came to nothing;
// nil if there is none.
func (d *Dir) endedEntry() (*Entry, error) {
	rec, err := readRecord(d.LogPath(recordFile))
	if err != nil {
		return nil, err
	}
	e := &Entry{Name: d.Name, Record: rec, Failure: d.failure()}
	if f := e.Failure; f != nil && rec != nil && !f.At.After(rec.Started) {
		e.Failure = nil // a later start succeeded
	}
	if rec == nil && e.Failure == nil {
		return nil, nil
	}
	return e, nil
}

// notAlive tells a VM that has ended from one that never was.
func (d *Dir) notAlive() error {
	if e, err := d.endedEntry(); err == nil && e != nil {
		return fmt.Errorf("%s: %w", d.Name, ErrEnded)
	}
	return fmt.Errorf("%s: %w", d.Name, ErrNotFound)
}

// Forget removes the logs and the record of a VM that has ended.
func (r Root) Forget(ctx context.Context, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	d := r.dir(name)
	unlock, err := r.lock(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		unlock, err = func() {}, nil // nothing is started without one
	}
	if err != nil {
		return err
	}
	defer unlock()
	if err := r.clear(ctx, name); err != nil {
		return err
	}
	if err := ownDir(d.State); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", name, ErrNotFound)
	} else if err != nil {
		return err
	}
	if has, err := r.HasTPM(name); err != nil || has {
		return errors.Join(err, fmt.Errorf("%s: %w", name, ErrTPM))
	}
	if has, err := r.HasVars(name); err != nil || has {
		return errors.Join(err, fmt.Errorf("%s: %w", name, ErrVars))
	}
	// Of commands that were killed.
	err = os.Remove(filepath.Join(d.State, VarsFile+newSuffix))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := removeTPM(filepath.Join(d.State, tpmNew)); err != nil {
		return err
	}
	return d.removeLogs()
}

// FindLogs returns a VM's directories and last record, whether it is alive or has
// ended. The caller closes the Dir.
func (r Root) FindLogs(ctx context.Context, name string) (*Dir, *Entry, error) {
	d, e, err := r.Find(ctx, name)
	if err == nil && !e.VMHeld {
		d.AwaitLogs(ctx)
	}
	if err == nil || !errors.Is(err, ErrNotFound) {
		return d, e, err
	}
	d = r.dir(name)
	if e, err = d.endedEntry(); err == nil && e == nil {
		err = fmt.Errorf("%s: %w", name, ErrNotFound)
	}
	if err != nil {
		return nil, nil, err
	}
	return d, e, nil
}

// List returns the VMs of the run directory, by name, and with ended also those
// of which only logs are left. A VM that cannot be looked at is not in it;
// [Root.SweepList] tells why.
func (r Root) List(ctx context.Context, ended bool) (out []*Entry, err error) {
	if out, _, err = r.list(ctx); err != nil || !ended {
		return out, err
	}
	old, err := r.ended(out)
	return append(out, old...), err
}

// list is List, and why VMs that are not in it could not be looked at.
func (r Root) list(ctx context.Context) (out []*Entry, unreadable, err error) {
	unlock, err := r.lock(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	names, err := r.names(r.Run)
	for _, name := range names {
		switch e, err := r.dir(name).entry(); {
		case err == nil:
			out = append(out, e)
		case !errors.Is(err, ErrNotFound): // which is a directory that is not a VM's
			unreadable = errors.Join(unreadable, fmt.Errorf("%s: %w", name, err))
		}
	}
	return out, unreadable, err
}

// ended are the VMs of which only logs are left.
func (r Root) ended(others []*Entry) (out []*Entry, err error) {
	names, err := r.names(r.State)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if slices.ContainsFunc(others, func(e *Entry) bool { return e.Name == name }) {
			continue
		}
		if e, _ := r.dir(name).endedEntry(); e != nil {
			out = append(out, e)
		}
	}
	return out, nil
}

func (r Root) names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && CheckName(e.Name()) == nil { // which refuses hidden ones
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Peek looks at a VM without making anything, not even the run directory; nil if
// there is no VM of the name.
func (r Root) Peek(name string) (*Entry, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	e, err := r.dir(name).entry()
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	return e, err
}
