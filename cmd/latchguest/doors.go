package main

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
)

// masked are the units of systemd that would let a person at the console in, in the initrd.
var masked = []string{
	"emergency.service", "rescue.service", "debug-shell.service",
	"systemd-ask-password-console.path", "systemd-ask-password-console.service",
}

// doors are what lets a person at the console in, of a command line and of the initrd. The volume
// that will be opened is the root file system; "" for none.
func (g *guest) doors(line, volume string) (open []string) {
	kind := exchange.AnyInitrd
	switch {
	case exists(g.scripts):
		kind = exchange.InitramfsTools
	case exists(g.dracut):
		kind = exchange.Dracut
	case exists(g.systemd):
		kind = exchange.Systemd
		for _, unit := range masked {
			if !g.masks(line, unit) {
				open = append(open, "systemd's "+unit+" is not masked in the initrd")
			}
		}
	}
	open = append(open, exchange.Doors(line, kind)...)
	if volume == "" {
		return open
	}
	named := false
	for word := range strings.FieldsSeq(line) {
		root, ok := strings.CutPrefix(word, "root=")
		if named = named || ok; ok && root != "/dev/mapper/"+volume {
			open = append(open, word+" is not the volume that is opened, /dev/mapper/"+volume)
		}
	}
	if !named && kind != exchange.AnyInitrd { // systemd would look for one among the host's disks
		open = append(open, "root=/dev/mapper/"+volume+" is missing")
	}
	return open
}

// masks reports whether a unit is masked: by a link to /dev/null, or on the command line.
func (g *guest) masks(line, unit string) bool {
	var to [16]byte
	n, err := unix.Readlink(g.units+"/"+unit, to[:])
	if err == nil && string(to[:n]) == "/dev/null" {
		return true
	}
	for word := range strings.FieldsSeq(line) {
		if word == "rd.systemd.mask="+unit { // systemd.mask= is not for initrds
			return true
		}
	}
	return false
}

// valueOf is the value of the first word of a command line that begins with a prefix.
func valueOf(line, prefix string) (string, bool) {
	for word := range strings.FieldsSeq(line) {
		if value, ok := strings.CutPrefix(word, prefix); ok {
			return value, true
		}
	}
	return "", false
}

// check says what is missing on a command line, and what lets a person in; it returns an exit code.
func (g *guest) check(line, volume string) int {
	open := g.doors(line, volume)
	_, err := exchange.ParseWords(line)
	if !exchange.HasWords(line) {
		err = errors.New("it names no broker (latch.key) and no secret of the TPM (latch.tpm): the disk stays shut")
	}
	if _, ok := valueOf(line, tpmWord); ok {
		_, err = pinOf(line)
	}
	if err != nil {
		open = append([]string{err.Error()}, open...)
	}
	for _, o := range open {
		g.say("%s", o)
	}
	if open != nil {
		return 4
	}
	return 0
}
