// Package tsmprobe shows how a configfs-tsm behaves at its edges, so that an emulated one can be
// held against the kernel's own. It makes system calls directly: a Go program that opens files of
// a file system that it serves itself must not have its runtime poll them.
package tsmprobe

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Probe tries everything below a directory tsm/report. Each line is something that was done and
// what came of it. Reports differ, so only their sizes are told.
func Probe(root string) (lines []string) {
	say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	d := root + "/probe"
	_ = unix.Rmdir(d)
	say("mkdir: %s", name(unix.Mkdir(d, 0o755)))
	say("mkdir again: %s", name(unix.Mkdir(d, 0o755)))
	say("mkdir below an entry: %s", name(unix.Mkdir(d+"/x", 0o755)))
	say("mkdir next to report: %s", name(unix.Mkdir(root+"/../x", 0o755)))
	say("file next to an entry: %s", write(root+"/f", []byte("x"), unix.O_CREAT))
	for _, f := range list(d) {
		say("file %s", f)
	}
	say("generation: %s", read(d+"/generation"))
	say("provider: %s", read(d+"/provider"))
	say("outblob before inblob: %s", read(d+"/outblob"))
	say("inblob of 32 bytes: %s", write(d+"/inblob", make([]byte, 32), 0))
	say("outblob after it: %s", read(d+"/outblob"))
	say("generation: %s", read(d+"/generation"))
	say("inblob of 65 bytes: %s", write(d+"/inblob", make([]byte, 65), 0))
	say("inblob in two parts, by two descriptors: %s", parts(d+"/inblob"))
	say("generation: %s", read(d+"/generation"))
	say("inblob of 64 bytes: %s", write(d+"/inblob", make([]byte, 64), 0))
	say("outblob: %s", read(d+"/outblob"))
	say("outblob again: %s", read(d+"/outblob"))
	say("inblob is read: %s", read(d+"/inblob"))
	say("outblob is written: %s", write(d+"/outblob", make([]byte, 8), 0))
	say("provider is written: %s", write(d+"/provider", []byte("x"), 0))
	halves(d, say)
	say("file is removed: %s", name(unix.Unlink(d+"/provider")))
	say("rmdir: %s", name(unix.Rmdir(d)))
	say("rmdir again: %s", name(unix.Rmdir(d)))
	say("rmdir of report: %s", name(unix.Rmdir(root)))
	return lines
}

// Levels tries what only SEV-SNP has.
func Levels(root string) (lines []string) {
	say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	d := root + "/levels"
	_ = unix.Mkdir(d, 0o755)
	say("auxblob before inblob: %s", read(d+"/auxblob"))
	say("privlevel_floor: %s", read(d+"/privlevel_floor"))
	for _, level := range []string{"1", "3\n", "4", "9", "-1", "x"} {
		say("privlevel %q: %s", level, write(d+"/privlevel", []byte(level), 0))
	}
	say("privlevel is read: %s", read(d+"/privlevel"))
	say("generation: %s", read(d+"/generation"))
	say("inblob of 64 bytes: %s", write(d+"/inblob", make([]byte, 64), 0))
	say("generation: %s", read(d+"/generation"))
	_ = unix.Rmdir(d)
	return lines
}

// halves reads a report in two parts, while a new one is asked for.
func halves(d string, say func(string, ...any)) {
	fd, err := unix.Open(d+"/outblob", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		say("outblob: %s", name(err))
		return
	}
	defer unix.Close(fd)
	whole := contents(d + "/outblob")
	first := make([]byte, 100)
	n, err := unix.Read(fd, first)
	say("first half: %d bytes, %s", n, name(err))
	say("inblob meanwhile: %s", write(d+"/inblob", slices.Repeat([]byte{1}, 64), 0))
	rest := make([]byte, len(whole))
	n, err = unix.Read(fd, rest)
	say("second half of the old one: %t, %s", n == len(whole)-100 && string(rest[:n]) == string(whole[100:]), name(err))
	say("a new one then: %t", string(contents(d+"/outblob")) != string(whole))
}

func name(err error) string {
	if err == nil {
		return "ok"
	}
	if e, ok := err.(unix.Errno); ok {
		return unix.ErrnoName(e)
	}
	return err.Error()
}

func contents(file string) []byte {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	b := make([]byte, 64<<10)
	for n := 0; ; {
		got, err := unix.Read(fd, b[n:])
		if err != nil {
			return nil
		}
		if got == 0 {
			return b[:n]
		}
		n += got
	}
}

// read says what a file has: texts themselves, of reports the size.
func read(file string) string {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "open " + name(err)
	}
	defer unix.Close(fd)
	b := make([]byte, 64<<10)
	n, err := unix.Read(fd, b)
	switch {
	case err != nil:
		return "read " + name(err)
	case n < 20:
		return fmt.Sprintf("%q", b[:n])
	}
	return fmt.Sprintf("%d bytes", n)
}

func write(file string, b []byte, flags int) string {
	fd, err := unix.Open(file, unix.O_WRONLY|unix.O_TRUNC|unix.O_CLOEXEC|flags, 0o600)
	if err != nil {
		return "open " + name(err)
	}
	_, err = unix.Write(fd, b)
	if e := unix.Close(fd); err == nil && e != nil {
		return "close " + name(e)
	}
	return name(err)
}

// parts writes a file in two parts, of which the first is followed by the close of a descriptor, as
// two programs of a shell do that write to one file.
func parts(file string) string {
	fd, err := unix.Open(file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "open " + name(err)
	}
	second, err := unix.Dup(fd)
	if err != nil {
		return "dup " + name(err)
	}
	_, err1 := unix.Write(second, make([]byte, 32))
	_ = unix.Close(second)
	_, err2 := unix.Write(fd, make([]byte, 32))
	_ = unix.Close(fd)
	return name(err1) + ", " + name(err2)
}

// list tells name, mode and size of what a directory has.
func list(dir string) (all []string) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return []string{name(err)}
	}
	defer unix.Close(fd)
	var names []string
	for b := make([]byte, 8192); ; {
		n, err := unix.ReadDirent(fd, b)
		if n <= 0 || err != nil {
			break
		}
		_, _, names = unix.ParseDirent(b[:n], -1, names)
	}
	slices.Sort(names)
	for _, f := range names {
		var st unix.Stat_t
		if err := unix.Lstat(dir+"/"+f, &st); err != nil {
			all = append(all, f+": "+name(err))
			continue
		}
		all = append(all, fmt.Sprintf("%s: mode %o, size %d", f, st.Mode&0o777, st.Size))
	}
	return slices.DeleteFunc(all, func(s string) bool { return strings.HasPrefix(s, ".") })
}
