package main

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/smallfmt"
)

// configure hands on what stands before the initrd and is measured with it (package firstboot): the
// seed to cloud-init, and the credentials to systemd, which takes them when the root is its own
// (src/core/import-creds.c, since 254).
func (g *guest) configure() error {
	// cloud-init obeys the machine's serial number before the command line and the seed: with it
	// the host could turn the seed off, or have the guest configured anew at each boot.
	if serial, err := readFile(g.serial); err == nil && exists(g.config+"/seed") &&
		strings.Contains(string(serial), "ds=") {
		return hint(smallfmt.Errorf("the machine's serial number tells cloud-init what to do: %s",
			strings.TrimSpace(string(serial))), "the host has set it: it must not begin with ds=")
	}
	handed := 0
	for _, part := range []struct{ from, to string }{
		{g.config + "/seed/", g.seed + "/"}, {g.config + "/credentials/", g.credentials + "/@initrd/"},
	} {
		for _, name := range list(part.from) {
			if name == "." || name == ".." {
				continue
			}
			b, err := readFile(part.from + name)
			if err != nil {
				return err
			}
			// Services of other users look for theirs below it (systemd.exec(5)).
			if err := makeDir(parent(g.credentials)); err != nil {
				return err
			}
			if err := unix.Mkdir(g.credentials, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
				return named(g.credentials, err)
			}
			if err := writeSecret(part.to+name, b); err != nil {
				return smallfmt.Errorf("configuration of the first boot: %w", err)
			}
			handed++
		}
	}
	if handed > 0 {
		g.say("the first boot is configured by %d measured files", handed)
	}
	return nil
}
