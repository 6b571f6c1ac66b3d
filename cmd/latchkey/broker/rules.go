package broker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence"
	"github.com/vmlatch/vmlatch/firmware/evidence/bundle"
	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/evidence/policy"
	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/firmware/sev"
	sevlaunch "github.com/vmlatch/vmlatch/firmware/sev/launch"
)

// Rules are what is judged by: policies and a bundle, as they were loaded.
type Rules struct {
	rules    map[string]*rule
	bundle   *bundle.Bundle
	marks    map[string]uint64
	Warnings []string // what is open, a sentence each
}

// rule is a policy, worked out.
type rule struct {
	*policy.File
	demands map[string]*evidence.Demands
	digests map[string][]byte // of SEV and SEV-ES
	room    uint32            // for the secrets of SEV, in bytes
	roots   bundle.Roots
	release map[string]*policy.Release
	kems    []string
}

// MaxSecret is the longest secret, in bytes.
const MaxSecret = 64 << 10

// Load reads policies, each a file or a directory of .toml files, and a bundle; "" for none. The
// policies' guests must name one of the broker's keys, if they name any.
func Load(policies []string, bundleFile string, keys ...exchange.Key) (*Rules, error) {
	r := &Rules{rules: map[string]*rule{}, bundle: bundle.New()}
	if bundleFile != "" {
		b, err := regular.Read(bundleFile, bundle.MaxSize)
		if err != nil {
			return nil, err
		}
		if r.bundle, err = bundle.Parse(b); err != nil {
			return nil, fmt.Errorf("%s: %w", bundleFile, err)
		}
	}
	files, err := policyFiles(policies)
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%w: there is no policy in %q (--policy: a file, or a directory of *.toml)",
			ErrConfig, policies)
	}
	for _, name := range files {
		f, err := policy.Read(name)
		if err != nil {
			return nil, err
		}
		if r.rules[f.Name] != nil {
			return nil, fmt.Errorf("%w: %s: another policy has the name %s, too", ErrConfig, name, f.Name)
		}
		if r.rules[f.Name], err = r.newRule(f, keys); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	for _, x := range r.rules {
		if bundleFile == "" && (x.SNP != nil || x.TDX != nil) {
			r.Warnings = append(r.Warnings,
				x.Name+": without certificates and lists (--bundle) no report or quote is accepted")
		}
	}
	r.marks = map[string]uint64{}
	for _, x := range r.rules {
		for what, n := range r.bundle.Marks(x.roots) {
			if x.Emulated != nil { // a test platform moves no mark of the vendors'
				what = x.Name + ": " + what
			}
			r.marks[what] = n
		}
	}
	return r, r.apart()
}

func policyFiles(names []string) (files []string, err error) {
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			files = append(files, name)
			continue
		}
		found, err := filepath.Glob(filepath.Join(name, "*.toml"))
		if err != nil {
			return nil, err
		}
		files = append(files, found...)
	}
	return files, nil
}

func (r *Rules) newRule(f *policy.File, keys []exchange.Key) (x *rule, err error) {
	x = &rule{
		File: f, demands: map[string]*evidence.Demands{}, digests: map[string][]byte{},
		release: map[string]*policy.Release{}, kems: append([]string{exchange.Hybrid}, f.KEM...),
	}
	for _, t := range []string{evidence.SNP, evidence.TDX, evidence.VTPM} {
		if f.Lacks(t) {
			continue
		}
		if x.demands[t], err = evidence.DemandsOf(f, t); err != nil {
			return nil, err
		}
	}
	if err := x.amd(); err != nil {
		return nil, err
	}
	if x.roots, err = rootsOf(f); err != nil {
		return nil, err
	}
	line, err := f.Cmdline()
	if err != nil {
		return nil, err
	}
	if err := f.CheckWords(line, keys...); err != nil {
		return nil, err
	}
	for _, o := range f.Open(line) {
		r.Warnings = append(r.Warnings, f.Name+": "+o)
	}
	if len(f.Release) == 0 {
		r.Warnings = append(r.Warnings, f.Name+": there is no [[release]]: its guests are judged, and get nothing")
	}
	for i := range f.Release {
		s := &f.Release[i]
		x.release[s.Secret] = s
		if s.File == "" {
			continue
		}
		if b, err := x.read(s); err != nil {
			return nil, fmt.Errorf("%w: release %s: %w", policy.ErrPolicy, s.Secret, err)
		} else if clear(b); len(b) == 0 {
			return nil, fmt.Errorf("%w: release %s: %s is empty", policy.ErrPolicy, s.Secret, s.File)
		}
	}
	return x, nil
}

// amd works out the digests of SEV and SEV-ES, which are judged by a measurement.
func (x *rule) amd() error {
	for _, t := range []sevlaunch.Technology{sevlaunch.SEV, sevlaunch.SEVES} {
		if x.Table(string(t)) == nil {
			continue
		}
		in, err := x.Inputs(t)
		if err != nil {
			return err
		}
		if x.digests[string(t)], err = sevlaunch.Digest(in); err != nil {
			return fmt.Errorf("%w: %s: %w", policy.ErrPolicy, t, err)
		}
	}
	if len(x.digests) == 0 {
		return nil
	}
	var err error
	x.room, err = x.SecretRoom()
	return err
}

func rootsOf(f *policy.File) (bundle.Roots, error) {
	name := f.Root()
	if name == "" {
		r := bundle.Genuine()
		amd, err := sev.AMDRoots()
		r.SEV = amd
		return r, err
	}
	b, err := regular.Read(name, bundle.MaxSize)
	if err != nil {
		return bundle.Roots{}, err
	}
	r, err := bundle.ParseRoots(name, b)
	if err != nil {
		return bundle.Roots{}, err
	}
	return *r, nil
}

// hostTrusted reports whether the policies are for guests that trust their hosts. They stand apart:
// what such a broker signs, a host can have.
func (r *Rules) hostTrusted() bool {
	for _, x := range r.rules {
		return x.VTPM != nil // apart has seen to it that all are the same
	}
	return false
}

// apart refuses secrets of an emulated policy that another policy gives, too: whoever holds a
// test root's key could get them.
func (r *Rules) apart() error {
	var trusting, others []string
	for _, name := range r.names() {
		if r.rules[name].VTPM != nil {
			trusting = append(trusting, name)
		} else {
			others = append(others, name)
		}
	}
	if trusting != nil && others != nil {
		return fmt.Errorf(
			"%w: %s trusts its host, and %s does not: each kind needs a broker of its own, with a key and"+
				" a state of its own",
			ErrConfig,
			trusting[0],
			others[0],
		)
	}
	for _, e := range r.rules {
		if e.Emulated == nil {
			continue
		}
		for _, other := range r.rules {
			if other.Emulated != nil {
				continue
			}
			for _, a := range e.release {
				for _, b := range other.release {
					if sameSecret(e, a, other, b) {
						return fmt.Errorf("%w: %s and %s give the same secret (%s): an emulated guest proves nothing",
							ErrConfig, e.Name, other.Name, a.Secret)
					}
				}
			}
		}
	}
	return nil
}

func sameSecret(x *rule, a *policy.Release, y *rule, b *policy.Release) bool {
	if a.File == "" || b.File == "" {
		return len(a.Command) > 0 && slices.Equal(a.Command, b.Command)
	}
	s, err1 := x.stat(a)
	t, err2 := y.stat(b)
	return err1 == nil && err2 == nil && os.SameFile(s, t)
}

func (x *rule) stat(r *policy.Release) (fs.FileInfo, error) {
	name, err := x.Path(r)
	if err != nil {
		return nil, err
	}
	return os.Stat(name)
}

// read reads a secret's file.
func (x *rule) read(r *policy.Release) ([]byte, error) {
	name, err := x.Path(r)
	if err != nil {
		return nil, err
	}
	return regular.Read(name, MaxSecret)
}

// names are the policies' names, sorted.
func (r *Rules) names() []string { return slices.Sorted(maps.Keys(r.rules)) }

// commandTime is how long a command may take to give a secret.
const commandTime = 10 * time.Second

// fetch gets the values of secrets. Nothing of what a guest said plays a part.
func (x *rule) fetch(ctx context.Context, names []string) (values map[string]exchange.Secret, err error) {
	values = map[string]exchange.Secret{}
	defer func() {
		if err != nil {
			exchange.Wipe(values)
		}
	}()
	for _, name := range names {
		r := x.release[name]
		var b []byte
		if r.File != "" {
			b, err = x.read(r)
		} else {
			b, err = run(ctx, x.Dir(), r.Command)
		}
		if err == nil && len(b) == 0 {
			err = errors.New("it is empty")
		}
		if err != nil {
			return nil, fmt.Errorf("secret %s: %w", name, err)
		}
		s := exchange.Secret{Value: b}
		if r.Kind == policy.LUKS {
			s.LUKSHeader = r.LUKSHeader
		}
		values[name] = s
	}
	return values, nil
}

// run runs a command that prints a secret. Its messages go to the broker's. What it has started
// ends with it.
func run(ctx context.Context, dir string, command []string) ([]byte, error) {
	ctx, stop := context.WithTimeout(ctx, commandTime)
	defer stop()
	out := &bounded{b: make([]byte, 0, MaxSecret)} // as large as may be: secrets are never copied away
	c := exec.CommandContext(ctx, command[0], command[1:]...)
	c.Dir, c.Stdout, c.Stderr, c.WaitDelay = dir, out, os.Stderr, time.Second
	group(c)
	if err := c.Run(); err != nil {
		clear(out.b)
		return nil, fmt.Errorf("%s: %w", command[0], err)
	}
	return out.b, nil
}

// bounded keeps what is written, up to its capacity.
type bounded struct{ b []byte }

func (w *bounded) Write(p []byte) (int, error) {
	if len(w.b)+len(p) > cap(w.b) {
		return 0, fmt.Errorf("it printed more than %d bytes", cap(w.b))
	}
	w.b = append(w.b, p...)
	return len(p), nil
}
