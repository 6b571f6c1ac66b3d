package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/evidence/bundle"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/sev"
)

// bundleRoots are the roots that parts must lead to: the vendors', and then a test root.
func bundleRoots(c *urfave.Context) (list []bundle.Roots, err error) {
	genuine := bundle.Genuine()
	amd, err := sev.AMDRoots()
	if err != nil {
		return nil, err
	}
	genuine.SEV = amd
	list = append(list, genuine)
	if file := c.String("trust-root"); file != "" {
		test, err := readRoots(file)
		if err != nil {
			return nil, cli.Fail(cli.ExitUsage, err)
		}
		list = append(list, *test)
	}
	return list, nil
}

// addPart keeps a part under the first roots that it leads to.
func addPart(b *bundle.Bundle, p bundle.Part, chains [][]byte, roots []bundle.Roots) (changed bool, err error) {
	for _, r := range roots {
		changed, e := b.AddWithChains(p, chains, r)
		if e == nil {
			return changed, nil
		}
		if err == nil {
			err = e
		}
	}
	return false, err
}

// source is where parts came from.
type source struct {
	name  string
	found *bundle.Found
}

// keeping is what became of the parts that a command has for a bundle.
type keeping struct {
	Schema string    `json:"schema"`
	Bundle string    `json:"bundle"`
	Parts  int       `json:"parts"` // that it has now
	New    int       `json:"new"`   // of them
	Failed []failure `json:"failed"`
}

// failure is a part that is not kept.
type failure struct {
	Source string      `json:"source"` // a file, or what was asked for
	Kind   bundle.Kind `json:"kind,omitempty"`
	URL    string      `json:"url,omitempty"`
	Reason string      `json:"reason,omitempty"` // as in verdicts
	Error  string      `json:"error"`
}

func (k *keeping) fail(s *cli.IO, f failure, err error, hints ...string) {
	if r := refusal.Of(err); r != nil {
		f.Reason = string(r.Reason)
	}
	f.Error = err.Error()
	k.Failed = append(k.Failed, f)
	if errors.Is(err, bundle.ErrNoChain) {
		hints = append(hints, "they stand in the headers of the server's answer: save it with them (curl -i)")
	}
	err = refused(fmt.Errorf("%s: %w", f.Source, err))
	if len(hints) > 0 {
		err = cli.Fail(cli.ExitFailure, err, hints...)
	}
	s.Fail(err)
}

// report says what became of the parts.
func (k *keeping) report(c *urfave.Context, s *cli.IO) error {
	if c.Bool("json") {
		return s.JSON(k)
	}
	s.Say("%s: %s, %d of them new", k.Bundle, cli.Count(k.Parts, "part"), k.New)
	return nil
}

func addToBundle(c *urfave.Context, s *cli.IO) error {
	if c.NArg() < 3 {
		_, err := cli.Args(c, "add", "BUNDLE", "FILE")
		return err
	}
	roots, err := bundleRoots(c)
	if err != nil {
		return err
	}
	var sources []source
	parts := 0
	for _, file := range c.Args().Slice()[2:] {
		f, err := recogniseFile(file)
		if err != nil {
			return cli.Fail(cli.ExitUsage, err)
		}
		for _, n := range f.Notes {
			s.Say("%s: %s", file, n)
		}
		parts += len(f.Parts)
		sources = append(sources, source{file, f})
	}
	if parts == 0 {
		return cli.Fail(
			cli.ExitUsage,
			errors.New("there is nothing to keep: certificates of authorities only vouch for other parts"),
			"add them together with what they vouch for, such as the answer that had these headers",
		)
	}
	k := &keeping{Schema: keptSchema, Bundle: c.Args().Get(1), Failed: []failure{}}
	if err := k.keep(s, sources, roots); err != nil {
		return err
	}
	err = k.report(c, s)
	if n := len(k.Failed); err == nil && n > 0 {
		err = errors.New("no part verifies: nothing is kept")
		if n < parts {
			err = fmt.Errorf("not all parts verify: %d of %d do not; the others are kept", n, parts)
		}
		err = &cli.Error{Code: cli.ExitRefused, Err: err, Quiet: c.Bool("json")}
	}
	return err
}

const keptSchema = "latchkey.bundle/1"

// keep adds the parts that verify to a bundle, as it is by now. Of the others it says why.
func (k *keeping) keep(s *cli.IO, sources []source, roots []bundle.Roots) error {
	held, err := holdBundle(k.Bundle)
	if err != nil {
		return err
	}
	defer held.release()
	b, err := openBundle(held.name)
	if err != nil {
		return err
	}
	var chains [][]byte
	for _, x := range sources {
		chains = append(chains, x.found.Chains...)
	}
	for _, x := range sources {
		for _, p := range x.found.Parts {
			changed, err := addPart(b, p, chains, roots)
			if err != nil {
				k.fail(s, failure{Source: x.name, Kind: p.Kind}, err)
			} else if changed {
				k.New++
			}
		}
	}
	k.Parts = len(b.Parts)
	bad := 0
	for i := range b.Parts {
		if inspectPart(&b.Parts[i], roots, time.Now()).State == "unverified" {
			bad++
		}
	}
	if bad > 0 {
		s.Say(
			"warning: %s: %s of it do not verify, and are not used: see latchkey bundle check",
			k.Bundle,
			cli.Count(bad, "part"),
		)
	}
	if k.New == 0 {
		return nil
	}
	return held.write(s, b)
}

// openBundle reads a bundle that a command changes; one that does not exist, and an empty file,
// is a new one.
func openBundle(file string) (*bundle.Bundle, error) {
	b, err := readLimited(file, bundle.MaxSize)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(bytes.TrimSpace(b)) == 0 {
		return bundle.New(), nil
	}
	if err != nil {
		return nil, cli.Fail(cli.ExitUsage, err)
	}
	return parseBundle(file, b)
}

// heldBundle is a bundle that no other command changes meanwhile.
type heldBundle struct {
	name    string // without symbolic links
	lock    *lock
	mode    fs.FileMode
	created bool // and nothing is in it yet
}

// holdBundle locks a bundle. One that does not exist is created as an empty file, so that
// there is something to lock: two commands that create one bundle lose nothing.
func holdBundle(name string) (*heldBundle, error) {
	switch name {
	case "":
		return nil, cli.Usagef("BUNDLE is empty")
	case "-":
		return nil, cli.Usagef("a bundle must be a file: it is changed in place")
	}
	h := &heldBundle{name: name, mode: 0o644}
	if target, err := filepath.EvalSymlinks(name); err == nil {
		h.name = target
	} else if info, err := os.Lstat(name); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		return nil, cli.Usagef("%s: it is a symbolic link to a file that does not exist", name)
	}
	for end := time.Now().Add(lockPatience); ; {
		f, err := os.OpenFile(h.name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, h.mode)
		if err == nil {
			h.created = true
			_ = f.Close()
		} else if !errors.Is(err, fs.ErrExist) {
			return nil, cli.Fail(cli.ExitUsage, err)
		}
		h.lock, err = lockOwner(h.name)
		switch {
		case err == nil:
			h.lock.read()
			return h, h.look()
		case errors.Is(err, errOwnerFile):
			return nil, cli.Fail(cli.ExitFailure, fmt.Errorf("%s: another program is changing it", name), "try again")
		case !errors.Is(err, fs.ErrNotExist) || time.Now().After(end): // else the last holder removed what it created
			return nil, cli.Fail(cli.ExitUsage, err)
		}
		h.created = false
	}
}

// look finds out what is held. A file that this command created may have been filled before it
// was locked.
func (h *heldBundle) look() error {
	info, err := os.Stat(h.name)
	if err != nil {
		h.lock.unlock()
		return cli.Fail(cli.ExitUsage, err)
	}
	h.mode, h.created = info.Mode().Perm(), h.created && info.Size() == 0
	return nil
}

// write replaces the bundle as a whole, or not at all.
func (h *heldBundle) write(s *cli.IO, b *bundle.Bundle) error {
	text, err := b.Bytes()
	if err != nil {
		return err
	}
	out, err := s.PrepareOutput(h.name, h.mode)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	defer out.Discard()
	if err = out.Commit(text); err == nil {
		h.created = false
	}
	return err
}

// release gives the bundle free, and removes an empty file that was created for nothing.
func (h *heldBundle) release() {
	if h.created {
		_ = os.Remove(h.name)
	}
	h.lock.unlock()
}
