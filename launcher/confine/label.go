package confine

import (
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
	file := "/proc/thread-self/attr/apparmor/exec"
	if _, err := os.Stat(file); err != nil {
		file = "/proc/thread-self/attr/exec" // before Linux 5.8
	}
	err := os.WriteFile(file, []byte("exec "+o.Box.Label), 0)
	// There is no such profile; the file is another module's; a policy of the host's keeps its own
	// word.
	if oneOf(err, unix.ENOENT, unix.EINVAL, unix.EACCES, unix.EPERM) != 0 {
		return nil
	}
	if err == nil {
		r.Label = o.Box.Label
	}
	return err
}
