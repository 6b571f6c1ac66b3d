package exchange

import (
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/smallfmt"
)

// Initrd is who answers for what happens when something fails before the root file system runs.
type Initrd uint8

// Initrds. AnyInitrd is one of the first two; which one it is cannot be told from a command line.
const (
	AnyInitrd Initrd = iota
	InitramfsTools
	Dracut
	Systemd // without dracut: its units must be masked, which no word of the command line tells
)

const (
	noShell     = "a shell opens where the initrd fails: add "
	panicWord   = "panic=-1"
	dracutWords = "rd.shell=0 rd.emergency=poweroff"
	shells      = " sh ash bash dash busybox "
	initWords   = " init break rd.break rdbreak single s S 1 -s -b emergency rescue rd.rescue systemd.run "
	debugWords  = " systemd.debug_shell systemd.debug-shell rd.systemd.debug_shell rd.systemd.debug-shell" +
		" systemd.break rd.systemd.break systemd.wants rd.systemd.wants kgdboc kgdbwait sysrq_always_enabled "
	diskWords     = " boot nfsroot mount.usr overlayroot "
	volumesPrefix = "/dev/mapper/"
)

// Doors are what of a command line lets a person at the guest's console in, or another system in
// place of the owner's, a sentence each. What its host types there, or has on its disks, would run
// next to the secrets.
//
// Unlike the kernel's own words, these are read behind " -- ", too: initrds and systemd do not stop
// there. Of a word that stands there several times the last one counts.
func Doors(line string, initrd Initrd) (open []string) {
	if strings.ContainsAny(line, "\"'\\") {
		open = append(open, "quotes and backslashes are read in different ways by the kernel, the initrd and systemd")
	}
	var panics, shell, emergency, resume, noResume bool
	for w := range strings.FieldsSeq(line) {
		key, value, _ := strings.Cut(w, "=")
		say := func(text string) { open = append(open, smallfmt.Escape(w)+text) }
		switch key {
		case "systemd.unit", "rd.systemd.unit":
			say(" may open a shell: leave units to the image")
		case "rdinit":
			if strings.Contains(shells, " "+value[strings.LastIndexByte(value, '/')+1:]+" ") {
				say(" is a shell")
			}
		case "root":
			if !strings.HasPrefix(value, volumesPrefix) {
				say(" may be any disk of the host's: name the volume that is opened, " + volumesPrefix + "VOLUME")
			}
		case "resume":
			resume = true
		case "noresume":
			noResume = true
		case "panic": // of initramfs-tools: any number keeps its shell away
			n, err := strconv.Atoi(value)
			panics = err == nil && n != 0
		case "rd.shell":
			if shell = value == "0"; !shell {
				say(" opens a shell")
			}
		case "rd.emergency":
			if emergency = value == "poweroff" || value == "halt" || value == "reboot"; value == "" {
				say(" opens a shell")
			}
		default:
			switch {
			case strings.Contains(initWords, " "+key+" "):
				say(" opens a shell, or lets another program take the place of init")
			case strings.Contains(debugWords, " "+key+" "):
				say(" opens a shell or a debugger")
			case strings.Contains(diskWords, " "+key+" "), strings.HasPrefix(key, "rd.luks."):
				say(" brings in a disk, or a system, of the host's")
			}
		}
	}
	if resume && !noResume {
		open = append(open, "resume= loads a system from a disk of the host's: add noresume")
	}
	switch {
	case initrd == AnyInitrd && !panics && !(shell && emergency):
		open = append(open, noShell+panicWord+" (initramfs-tools), or "+dracutWords+" (dracut)")
	case initrd == InitramfsTools && !panics:
		open = append(open, noShell+panicWord)
	case initrd == Dracut && !(shell && emergency):
		open = append(open, noShell+dracutWords)
	}
	return open
}
