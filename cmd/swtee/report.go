package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/swtee"
)

// reportFile is the destination of a report: a file that is replaced as a whole at each
// step, or a stream that gets the report once, at the end.
type reportFile struct {
	path   string
	stream *os.File
}

// openReport opens it before QEMU starts: a report that cannot be written fails
// immediately, and a missing reader does not block a launch. It returns nil for "".
func openReport(name string) (*reportFile, error) {
	if name == "" {
		return nil, nil
	}
	info, err := os.Stat(name)
	switch {
	case err == nil && info.IsDir():
		return nil, fmt.Errorf("--report %s: is a directory", name)
	case err == nil && !info.Mode().IsRegular(), isDescriptor(name):
		f, err := os.OpenFile(name, os.O_WRONLY|unix.O_NONBLOCK, 0)
		if errors.Is(err, unix.ENXIO) {
			return nil, fmt.Errorf("--report %s: no process reads this pipe", name)
		}
		if err != nil {
			return nil, fmt.Errorf("--report: %w", err)
		}
		return &reportFile{stream: f}, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("--report: %w", err)
	}
	r := &reportFile{path: name}
	if real, err := filepath.EvalSymlinks(name); err == nil {
		r.path = real // replace the target, not the link
	}
	if err := (&swtee.Report{Schema: swtee.ReportSchema, Emulated: true}).WriteFile(r.path); err != nil {
		return nil, err
	}
	return r, nil
}

// isDescriptor reports whether a name refers to a file that is already open.
func isDescriptor(name string) bool {
	abs, err := filepath.Abs(name)
	return err == nil && (strings.HasPrefix(abs, "/dev/") || strings.HasPrefix(abs, "/proc/"))
}

func (r *reportFile) step(rep *swtee.Report) error {
	if r.stream != nil {
		return nil
	}
	return rep.WriteFile(r.path)
}

func (r *reportFile) last(rep *swtee.Report) error {
	if r.stream != nil {
		return rep.Write(r.stream)
	}
	return rep.WriteFile(r.path)
}

func (r *reportFile) close() {
	if r != nil && r.stream != nil {
		_ = r.stream.Close()
	}
}
