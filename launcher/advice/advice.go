package advice

import (
	"errors"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/sev/exchange"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/slot"
)

// Advice is what to do about an error.
type Advice struct {
	Kind  fault.Kind
	Cause string   // what is behind the words of another program; "" where they say it
	Fixes []string // suggestions, the best first
	// Late means that the platform gives encryption slots back late: the same launch
	// may succeed in a moment.
	Late bool
}

// For returns the advice about an error; without fixes if there is none.
func For(err error) Advice {
	e := fault.As(err)
	if e != nil && e.Kind == fault.QEMU {
		text := decimal(e.Error())
		for i, pattern := range patterns() {
			if row := &rows()[i]; pattern.MatchString(text) {
				return Advice{Kind: row.kind, Cause: row.cause, Fixes: []string{row.fix}, Late: row.late}
			}
		}
	}
	if e != nil && (e.Fix != "" || e.Hardware) {
		a := Advice{Kind: e.Kind, Fixes: strings.FieldsFunc(e.Fix, func(r rune) bool { return r == '\n' })}
		if e.Hardware {
			a.Fixes = append(a.Fixes, emulate)
		}
		return a
	}
	switch { // whose fault it is matters more than which system call told
	case e == nil:
	case e.Kind == fault.Spec:
		return Advice{Kind: e.Kind, Fixes: []string{`"vmlatch help spec" describes the file`}}
	case e.Kind == fault.State:
		return Advice{Kind: e.Kind, Fixes: []string{`"vmlatch help states" shows which step follows which`}}
	case e.Kind != fault.Failure && e.Kind != fault.QEMU:
		return Advice{Kind: e.Kind}
	}
	for _, row := range known {
		if errors.Is(err, row.err) {
			return Advice{Kind: row.kind, Fixes: []string{named(err, row.fix)}}
		}
	}
	if e == nil {
		return Advice{}
	}
	return Advice{Kind: e.Kind}
}

// named puts the name of the VM that an error is about, if it begins with one, into advice
// about any NAME.
func named(err error, fix string) string {
	name, _, ok := strings.Cut(err.Error(), ": ")
	if !ok || rundir.CheckName(name) != nil {
		return fix
	}
	return strings.ReplaceAll(fix, "NAME", name)
}

const emulate = `without the hardware, "--emulate" takes the same steps on an emulated platform`

// known are errors that say what they are about, and what to do about them.
var known = [...]struct {
	err  error
	kind fault.Kind
	fix  string
}{
	{slot.ErrNone, fault.Host, fault.FixSlots},
	{exchange.ErrFormat, fault.Spec, `packets come from "latchkey secret"`},
	{rundir.ErrEnded, fault.Failure, `"vmlatch restart NAME" starts it again, "vmlatch logs NAME" has its last words`},
	{rundir.ErrNotFound, fault.Failure, `"vmlatch ps --all" lists the VMs of this user`},
	{
		rundir.ErrExists,
		fault.Failure,
		`"vmlatch stop NAME" ends it; a spec can be started under another name with --name`,
	},
	{rundir.ErrBusy, fault.Failure, "try again when that has finished"},
	{
		rundir.ErrUnsafe,
		fault.Host,
		"name a different one: --run-dir and --state-dir, or run-dir and state-dir in host.toml",
	},
	// What a host can run out of, or withhold.
	{
		unix.ENOSPC,
		fault.Host,
		`make room in the file system of the path, or name other directories: "vmlatch help files"`,
	},
	{unix.EDQUOT, fault.Host, "make room, or have the user's quota raised"},
	{unix.EROFS, fault.Host, "name a directory that can be written to: --run-dir and --state-dir, or host.toml"},
	{unix.ENOTDIR, fault.Host, "name a directory: --run-dir and --state-dir, or host.toml"},
	{unix.EMFILE, fault.Host, fault.FixOpenFiles},
	{unix.ENFILE, fault.Host, "the whole system has too many files open: sysctl fs.file-max"},
	{unix.ENOMEM, fault.Host, "stop something, or give the VM less memory"},
	{os.ErrPermission, fault.Host, "look at who owns the path, and at who you are"},
}

// patterns are the table's. They are compiled when an error has come: most commands
// never need one.
var patterns = sync.OnceValue(func() (list []*regexp.Regexp) {
	for _, row := range rows() {
		list = append(list, regexp.MustCompile(row.pattern))
	}
	return list
})

// firmwareStatus finds the firmware's status in QEMU's words.
var firmwareStatus = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(fw_err(?:or)?='?)(0x[0-9a-fA-F]+|[0-9]+)`)
})

// decimal writes hexadecimal statuses in QEMU's words as decimal ones, which the
// table has.
func decimal(text string) string {
	return firmwareStatus().ReplaceAllStringFunc(text, func(s string) string {
		m := firmwareStatus().FindStringSubmatch(s)
		n, err := strconv.ParseUint(m[2], 0, 32)
		if err != nil {
			return s
		}
		return m[1] + strconv.FormatUint(n, 10)
	})
}
