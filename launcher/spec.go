package launcher

import (
	"fmt"

	"github.com/vmlatch/vmlatch/launcher/check"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/spec"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// LoadSpec reads a spec file; see [ParseSpec]. Relative paths in it are relative to it.
func LoadSpec(file string) (*tee.Spec, error) {
	s, err := tee.Load(file)
	if err != nil {
		return nil, err
	}
	return s, sensible(s)
}

// ParseSpec reads a spec. file names it in errors; relative paths start from dir.
// Unknown keys are errors, as is what the checks refuse that need no host.
func ParseSpec(b []byte, file, dir string) (*tee.Spec, error) {
	s, err := tee.Parse(b, file, dir)
	if err != nil {
		return nil, err
	}
	return s, sensible(s)
}

// LoadHostConfig reads a host's settings; a file that does not exist means defaults,
// unless it was asked for by name.
func LoadHostConfig(file string, named bool) (*spec.HostConfig, error) {
	return spec.LoadHost(file, named, host.Pools())
}

// sensible refuses a spec that makes no sense for a technology that it asks for. Of
// several each must, for what is wrong with one must not lead to a weaker one; the
// host decides between them.
func sensible(s *tee.Spec) error {
	names := s.Asked()
	for _, name := range names {
		_, err := guestOf(s, name)
		if err == nil {
			continue
		}
		if !s.File().Has("confidential.technology") && len(s.Guest().Disks) > 0 {
			return nil // a disk image may ask for a technology
		}
		if e := fault.As(err); len(names) > 1 && e != nil {
			e.Err = fmt.Errorf("for %s: %w", name, e.Err)
			if e.Fix == "" {
				e.Fix = fmt.Sprintf("what only %s needs goes into [confidential.%s]: policy, cpu, until", name, name)
			}
		}
		return err
	}
	return nil
}

// guestOf is a spec's guest as it is for one technology, checked.
func guestOf(s *tee.Spec, technology string) (*tee.Guest, error) {
	g, err := s.For(technology)
	if err == nil {
		err = check.SpecError(g, check.Spec(g))
	}
	return g, err
}
