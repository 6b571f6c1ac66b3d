package host

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/digitalocean/go-qemu/qmp/raw"

	"github.com/vmlatch/vmlatch/qmp"
)

// QEMU is what a QEMU was built with, found by asking it.
type QEMU struct {
	Path     string            `json:"path"`
	Version  string            `json:"version"`
	Asked    Names             `json:"asked"`              // types that were asked for
	Objects  map[string]Names  `json:"objects"`            // those of them that it has, with their properties
	Features map[string]Names  `json:"features"`           // of these types (QAPI feature flags)
	Machines map[string]string `json:"machines"`           // alias to type, such as q35 to pc-q35-11.1
	Machine  Names             `json:"machine-properties"` // of q35
	MaxCPUs  map[string]int    `json:"max-cpus"`           // of q35 and its versions
	Types    Names             `json:"machine-types"`      // all of them, without aliases
	CPUs     Names             `json:"cpus"`
	Sockets  Names             `json:"socket-options"` // of -chardev socket
}

// Names are written as one text with spaces between, which is read faster than a
// list: every start reads it.
type Names []string

// MarshalText joins the names.
func (n Names) MarshalText() ([]byte, error) { return []byte(strings.Join(n, " ")), nil }

// UnmarshalText splits them.
func (n *Names) UnmarshalText(b []byte) error {
	*n = strings.Fields(string(b))
	return nil
}

// HasObject reports whether QEMU can make an object with all of the properties.
func (q *QEMU) HasObject(name string, properties ...string) bool {
	have, ok := q.Objects[name]
	return ok && !slices.ContainsFunc(properties, func(p string) bool { return !slices.Contains(have, p) })
}

// HasFeature reports whether a type has a QAPI feature flag.
func (q *QEMU) HasFeature(name, feature string) bool {
	return slices.Contains(q.Features[name], feature)
}

// HasSocket reports whether a chardev of the kind socket has an option.
func (q *QEMU) HasSocket(option string) bool { return slices.Contains(q.Sockets, option) }

// MachineTypes are all machine types, with the aliases; nil if they are not known.
func (q *QEMU) MachineTypes() []string {
	if q == nil || len(q.Types) == 0 {
		return nil
	}
	types := slices.Clone(q.Types)
	// A generic sort by a function of strings would be a page of the program.
	sort.Slice(types, func(i, j int) bool { return byVersion(types[i], types[j]) > 0 })
	return slices.Concat(slices.Sorted(maps.Keys(q.Machines)), types)
}

// byVersion compares names of machine types: pc-q35-9.2 comes before pc-q35-11.1.
func byVersion(a, b string) int {
	version := func(name string) (base string, n [3]int) {
		at := strings.LastIndexByte(name, '-')
		for i, part := range strings.SplitN(name[at+1:], ".", len(n)) {
			n[i], _ = strconv.Atoi(part)
		}
		return name[:max(at, 0)], n
	}
	baseA, x := version(a)
	baseB, y := version(b)
	return cmp.Or(cmp.Compare(baseA, baseB), slices.Compare(x[:], y[:]))
}

// HasMachine reports whether the q35 machine has a property.
func (q *QEMU) HasMachine(property string) bool { return slices.Contains(q.Machine, property) }

// ErrQEMU is wrapped by errors about a QEMU that does not answer.
var ErrQEMU = errors.New("ask QEMU what it can do")

// Ask runs a QEMU without a machine, lets ask talk to it, and ends it. program
// is QEMU's path, perhaps with an emulator and its options before it; options
// come after. QEMU's own words are part of an error.
func Ask(ctx context.Context, program, options []string, ask func(context.Context, *qmp.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	conn, theirs, err := qmp.Pair()
	if err != nil {
		return err
	}
	argv := append(slices.Clone(program),
		"-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S",
		"-chardev", "socket,id=ask,fd=3", "-mon", "chardev=ask,mode=control")
	argv = append(argv, options...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var stderr lastWords
	cmd.Stderr = &stderr
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = time.Second
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		_ = conn.Close()
		return fmt.Errorf("%w: %w", ErrQEMU, err)
	}
	c, err := qmp.NewConn(ctx, conn, qmp.Options{})
	if err == nil {
		err = ask(ctx, c)
		if e := raw.NewMonitor(c.Monitor(ctx)).Quit(); e != nil && err == nil && !errors.Is(e, qmp.ErrClosed) {
			err = e
		}
		_ = c.Close()
	}
	if err != nil {
		cancel() // it may not end by itself
	}
	waitErr := cmd.Wait()
	if words := stderr.String(); err != nil && words != "" {
		err = errors.Join(err, fmt.Errorf("QEMU: %s", words), waitErr)
	}
	return err
}

// lastWords keeps the end of what a program writes, however much that is.
type lastWords struct{ b []byte }

const maxWords = 4 << 10

func (l *lastWords) Write(p []byte) (int, error) {
	l.b = append(l.b, p[max(0, len(p)-maxWords):]...)
	l.b = append(l.b[:0], l.b[max(0, len(l.b)-maxWords):]...)
	return len(p), nil
}

// String is one line.
func (l *lastWords) String() string {
	lines := strings.FieldsFunc(string(l.b), func(r rune) bool { return r == '\n' || r == '\r' })
	return strings.TrimSpace(strings.Join(lines, "; "))
}

// askTimeout bounds one conversation; it takes some 100 ms.
const askTimeout = 30 * time.Second

// objectTypes are what every QEMU is asked for.
var objectTypes = []string{"sev-guest", "sev-snp-guest", "tdx-guest", "igvm-cfg", "memory-backend-memfd"}

// Probe asks a QEMU what it can do. more are types of objects to ask for, besides
// those that this package knows.
func Probe(ctx context.Context, path string, more ...string) (*QEMU, error) {
	q := &QEMU{
		Path:     path,
		Asked:    append(slices.Clone(objectTypes), more...),
		Objects:  map[string]Names{},
		Features: map[string]Names{},
		Machines: map[string]string{},
		MaxCPUs:  map[string]int{},
	}
	err := Ask(ctx, []string{path}, []string{"-accel", "tcg"}, q.learn)
	if err != nil && !errors.Is(err, ErrQEMU) {
		err = fmt.Errorf("%w: %s: %w", ErrQEMU, path, err)
	}
	return q, err
}

// learn asks whether each type is there, for a schema also describes what a build
// left out, and takes its properties from the schema, for some exist only in
// objects. Types that a QEMU was patched to have, and did not describe, show their
// properties themselves. (qom-list-types would load every module that is
// installed, to know all types.)
func (q *QEMU) learn(ctx context.Context, c *qmp.Conn) error {
	q.Version = c.Version().String()
	entries, err := qmp.QueryQMPSchema{}.Execute(ctx, c)
	if err != nil {
		return err
	}
	described, err := objectsOf(entries)
	if err != nil {
		return err
	}
	for _, t := range q.Asked {
		properties, err := qmp.QOMListProperties{Type: t}.Execute(ctx, c)
		var refused *qmp.Error
		switch {
		case errors.As(err, &refused) && refused.Class != "":
			continue // it has no such type
		case err != nil:
			return err
		}
		q.Objects[t] = properties
		if d, ok := described[t]; ok {
			q.Objects[t] = d.properties
			if len(d.features) > 0 {
				q.Features[t] = d.features
			}
		}
	}
	q.Sockets = socketOptions(entries)
	known := raw.NewMonitor(c.Monitor(ctx))
	machines, err := known.QueryMachines()
	if err != nil {
		return err
	}
	for _, m := range machines {
		names := []string{m.Name}
		if m.Alias != nil {
			names, q.Machines[*m.Alias] = append(names, *m.Alias), m.Name
		}
		q.Types = append(q.Types, m.Name)
		if strings.HasPrefix(m.Name, "pc-q35-") {
			for _, name := range names {
				q.MaxCPUs[name] = int(m.CPUMax)
			}
		}
	}
	if q35 := q.Machines["q35"]; q35 != "" {
		if q.Machine, err = (qmp.QOMListProperties{Type: q35 + "-machine"}).Execute(ctx, c); err != nil {
			return err
		}
	}
	models, err := known.QueryCPUDefinitions()
	for _, m := range models {
		q.CPUs = append(q.CPUs, m.Name)
	}
	return err
}

// schemaEntry is one entry of query-qmp-schema (qapi/introspect.json).
type schemaEntry struct {
	Name     string            `json:"name"`
	MetaType string            `json:"meta-type"`
	ArgType  string            `json:"arg-type"`
	Features []json.RawMessage `json:"features"`
	Members  []struct {
		Name string `json:"name"`
		Case string `json:"case"`
	} `json:"members"`
	Variants []struct {
		Case string `json:"case"`
		Type string `json:"type"`
	} `json:"variants"`
}

type described struct{ properties, features []string }

// socketOptions are those of a chardev of the kind socket. A schema gives its types numbers, but
// only one has these members (qapi/char.json, ChardevSocket).
func socketOptions(entries []json.RawMessage) (names Names) {
	for _, raw := range entries {
		if !bytes.Contains(raw, []byte(`"telnet"`)) || !bytes.Contains(raw, []byte(`"tn3270"`)) {
			continue
		}
		var e schemaEntry
		if json.Unmarshal(raw, &e) != nil {
			continue
		}
		for _, m := range e.Members {
			names = append(names, m.Name)
		}
	}
	return names
}

// objectsOf follows object-add's argument to the types that it can make.
func objectsOf(entries []json.RawMessage) (map[string]described, error) {
	byName := map[string]*schemaEntry{}
	for _, raw := range entries {
		// Most entries are commands, events and enums that are not needed here.
		if !bytes.Contains(raw, []byte(`"object"`)) && !bytes.Contains(raw, []byte(`"object-add"`)) {
			continue
		}
		e := &schemaEntry{}
		if err := json.Unmarshal(raw, e); err != nil {
			return nil, fmt.Errorf("schema: %w", err)
		}
		byName[e.Name] = e
	}
	add := byName["object-add"]
	if add == nil || byName[add.ArgType] == nil {
		return nil, errors.New("schema: has no command object-add")
	}
	objects := map[string]described{}
	for _, v := range byName[add.ArgType].Variants {
		t := byName[v.Type]
		if t == nil {
			continue
		}
		var d described
		for _, m := range t.Members {
			d.properties = append(d.properties, m.Name)
		}
		for _, f := range t.Features {
			var name string
			if json.Unmarshal(f, &name) == nil {
				d.features = append(d.features, name)
			}
		}
		objects[v.Case] = d
	}
	return objects, nil
}
