package confine

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// hasAppArmor reports whether the kernel's AppArmor is on.
func hasAppArmor(root string) bool {
	b, err := os.ReadFile(filepath.Join(root, "sys/module/apparmor/parameters/enabled"))
	return err == nil && strings.TrimSpace(string(b)) == "Y"
}

// label has the program get its AppArmor profile at its exec (apparmor_parser(8),
// aa_change_onexec(2)), and reports it. One that is not loaded is left out: only who may load
// profiles can look which are.
func (o *order) label(r *Report) error {
	if o.Box.Label == "" {
		return nil
	}
	const attr = "/proc/thread-self/attr/"
	var err error
	for _, file := range []string{attr + "apparmor/exec", attr + "exec"} { // since 5.8, and before
		if err = os.WriteFile(file, []byte("exec "+o.Box.Label), 0); !errors.Is(err, unix.ENOENT) {
			break
		}
		if _, there := os.Stat(file); there == nil {
			break
		}
	}
	switch oneOf(err, unix.ENOENT, unix.EINVAL, unix.EACCES, unix.EPERM) {
	case unix.ENOENT, unix.EINVAL: // no such profile, or another module's file
		return nil
	case unix.EACCES, unix.EPERM: // a policy of the host's keeps its own word
		return nil
	}
	if err == nil {
		r.Label = o.Box.Label
	}
	return err
}
