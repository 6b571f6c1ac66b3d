package launcher

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/vmlatch/vmlatch/launcher/logkeeper"
)

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// lastLines returns the last lines of a log, without the program's own name.
func lastLines(file string, n int) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	const limit = 8 << 10
	if info, err := f.Stat(); err == nil && info.Size() > limit {
		_, _ = f.Seek(-limit, io.SeekEnd)
	}
	b, _ := io.ReadAll(io.LimitReader(f, limit))
	var lines []string
	for line := range strings.SplitSeq(string(bytes.TrimSpace(b)), "\n") {
		if name, rest, ok := strings.Cut(line, ": "); ok && strings.HasPrefix(filepath.Base(name), "qemu-system-") {
			line = rest
		}
		if line = strings.TrimSpace(line); line != "" && !isRemark(line) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}

// isRemark reports whether a line does not explain an end: it is a warning of QEMU, or
// an emulator introduces itself.
func isRemark(line string) bool {
	return strings.HasPrefix(line, "warning: ") || strings.Contains(line, ": warning: ") ||
		strings.HasPrefix(line, "swtee: emulated platform") || strings.HasPrefix(line, logkeeper.Remark) ||
		strings.HasPrefix(line, "time=") && strings.Contains(line, " emulated=true") // its log
}

// makeDirs makes the directories in which QEMU itself opens, or makes, what it finds.
func (s *starter) makeDirs() error {
	g := s.plan.Guest
	for _, n := range g.Networks {
		var err error
		switch {
		case n.Connect != "":
			err = s.plan.Dirs.MakeLinkDir(n.Connect)
		case n.Peer != "":
			err = s.plan.Dirs.MakePeerDirs(s.plan.Name, n.Peer)
		}
		if err != nil {
			return err
		}
	}
	if g.Display.On() {
		return s.dir.MakeScreen()
	}
	return nil
}
