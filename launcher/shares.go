package launcher

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/internal/procfs"
	"github.com/vmlatch/vmlatch/launcher/plan"
)

// shareFacts looks for what serves a guest's directories.
func shareFacts(g *plan.Guest, f *plan.Facts) (err error) {
	served := slices.ContainsFunc(g.Shares, func(s plan.Share) bool { return s.Mode == plan.ShareVirtioFS })
	if !served {
		return nil
	}
	f.VirtioFSDLacks = lacking()
	f.VirtioFSD, err = findVirtioFSD()
	return err
}

// lacking are the capabilities that virtiofsd needs, by root's hand, and this process cannot give
// it: it changes its root directory, and makes files for whom the guest says (virtiofsd,
// "--modcaps").
func lacking() (names []string) {
	if os.Geteuid() != 0 {
		return nil // it makes a user namespace, or says what it lacks
	}
	for _, c := range []struct {
		name string
		bit  int
	}{
		{"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN},
		{"CAP_CHOWN", unix.CAP_CHOWN},
		{"CAP_DAC_OVERRIDE", unix.CAP_DAC_OVERRIDE},
		{"CAP_FOWNER", unix.CAP_FOWNER},
		{"CAP_FSETID", unix.CAP_FSETID},
		{"CAP_MKNOD", unix.CAP_MKNOD},
		{"CAP_SETFCAP", unix.CAP_SETFCAP},
		{"CAP_SETGID", unix.CAP_SETGID},
		{"CAP_SETUID", unix.CAP_SETUID},
	} {
		if !procfs.May(c.bit) {
			names = append(names, c.name)
		}
	}
	return names
}

// findVirtioFSD finds virtiofsd, which no distribution puts into PATH.
func findVirtioFSD() (string, error) {
	const directories = "virtiofsd /usr/libexec/virtiofsd /usr/lib/virtiofsd /usr/lib/qemu/virtiofsd"
	for name := range strings.FieldsSeq(directories) {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", &fault.Error{
		Kind: fault.Host, Op: "share a directory", Err: errors.New("virtiofsd is missing"),
		Fix: `install it: the package virtiofsd, or qemu-system-common; or write mode = "9p"`,
	}
}
