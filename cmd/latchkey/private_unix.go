//go:build unix

package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
)

// checkPrivate refuses an owner file that is another user's, one that others can read, and
// one that has a second name: only one of the two would know that the session is used up.
func checkPrivate(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w %s: %s", errOwnerFile, f.Name(), fmt.Sprintf(format, args...))
	}
	mode := uint32(st.Mode) & 0o777
	switch {
	case int(st.Uid) != os.Geteuid():
		return cli.Fail(cli.ExitRefused, refuse("belongs to another user (uid %d)", st.Uid),
			"use it as that user: others could change what it says of the session")
	case st.Nlink > 1:
		return cli.Fail(cli.ExitRefused, refuse("has a second name (a hard link)"), "remove the other name")
	case mode&0o077 != 0:
		return cli.Fail(cli.ExitRefused, refuse("others can read it (mode %04o)", mode),
			"chmod 600 "+f.Name(), "if others may have read it, make a new session")
	}
	return nil
}
