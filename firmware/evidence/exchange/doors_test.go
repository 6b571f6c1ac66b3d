package exchange

import (
	"strings"
	"testing"
)

func TestDoors(t *testing.T) {
	for _, line := range []string{
		"panic=-1", "console=ttyS0 panic=5 quiet", "rd.shell=0 rd.emergency=poweroff", "panic=0 panic=-1",
		"panic=-1 root=/dev/mapper/root", "panic=-1 resume=/dev/vda3 noresume", "panic=-1 rdinit=/sbin/init",
	} {
		if open := Doors(line, AnyInitrd); open != nil {
			t.Errorf("%q: %q, want none", line, open)
		}
	}
	for line, want := range map[string]string{
		"":                      "a shell opens",
		"panic=0":               "a shell opens",
		"panic":                 "a shell opens",
		"rd.shell=0":            "a shell opens",
		"rd.emergency=poweroff": "a shell opens",
		"panic=-1 panic=":       "a shell opens",
		"panic=-1 panic=0":      "a shell opens",
		"panic=-1 -- single":    "single",
		"panic=-1 -- break":     "break",
		"panic=-1 -b":           "-b opens a shell",
		"panic=-1 rdbreak":      "rdbreak",
		"panic=-1 rd.systemd.wants=debug-shell.service": "wants",
		"panic=-1 systemd.unit=runlevel1.target":        "runlevel1",
		"panic=-1 boot=nfs":                             "boot=nfs",
		"panic=-1 overlayroot=/dev/vdb":                 "overlayroot",
		"panic=-1 rd.luks.name=1=root":                  "rd.luks.name",
		"panic=-1 sysrq_always_enabled":                 "sysrq",
		"panic=-1 rd.rescue":                            "rd.rescue",
		"panic=-1 rd.emergency":                         "rd.emergency",
		"panic=-1 rd.systemd.debug-shell":               "debug-shell",
		`panic=-1 "rdinit=/bin/sh"`:                     "quotes",
		`panic=-1 root="/dev/sda"`:                      "quotes",
		"panic=-1 break":                                "break",
		"panic=-1 break=mount":                          "break=mount",
		"panic=-1 rd.break=pre-mount":                   "rd.break",
		"panic=-1 init=/bin/sh":                         "init=/bin/sh",
		"panic=-1 single":                               "single",
		"panic=-1 rd.shell":                             "rd.shell",
		"panic=-1 systemd.debug_shell":                  "debug_shell",
		"panic=-1 systemd.debug_shell=tty":              "debug_shell",
		"panic=-1 systemd.unit=rescue.target":           "rescue",
		"panic=-1 kgdboc=ttyS0":                         "kgdboc",
		"panic=-1 rdinit=/bin/sh":                       "is a shell",
		"panic=-1 rdinit=busybox":                       "is a shell",
		"panic=-1 root=LABEL=root":                      "any disk of the host's",
		"panic=-1 resume=/dev/vda3":                     "add noresume",
	} {
		if open := strings.Join(Doors(line, AnyInitrd), "; "); !strings.Contains(open, want) {
			t.Errorf("%q: %q, want %q", line, open, want)
		}
	}
}
