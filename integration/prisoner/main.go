// Command prisoner is started as QEMU, with all that QEMU gets, and plays one that a guest has
// taken over: it says what QEMU says, makes the attempts that the variable QEMU_ATTEMPTS names, a
// line each (see package escape), and writes to the guest's console how each ended. Started as
// swtpm it plays that: it makes the attempts that QEMU_TPM_ATTEMPTS names, leaves what it found
// with its state, and lays a trap in the place of that.
package main

import (
	"encoding/json"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/integration/escape"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/qmp/qmptest"
)

func main() {
	signal.Ignore(unix.SIGINT, unix.SIGTERM)
	if len(os.Args) > 1 && os.Args[1] == "socket" {
		playTPM(plan.ParseOptions(os.Args))
	}
	o := plan.ParseOptions(os.Args)
	q := qmptest.NewQEMU()
	q.On("cont", func(json.RawMessage) (any, error) { // by now the guest runs
		go report(logOf(o, "console"), strings.Split(os.Getenv("QEMU_ATTEMPTS"), "\n"))
		return struct{}{}, nil
	})
	for _, chardev := range o.Values["-chardev"] {
		p := plan.Properties(chardev)
		fd, err := strconv.Atoi(p["fd"])
		if err != nil {
			continue
		}
		f := os.NewFile(uintptr(fd), p["id"])
		if p["server"] != "on" {
			c, err := net.FileConn(f)
			if err != nil {
				panic(err)
			}
			go func() { _ = q.Serve(c) }()
			continue
		}
		l, err := net.FileListener(f)
		if err != nil {
			panic(err)
		}
		go q.Listen(l)
	}
	time.Sleep(time.Hour)
}

// logOf is the log of a character device.
func logOf(o *plan.Options, id string) *os.File {
	for _, chardev := range o.Values["-chardev"] {
		p := plan.Properties(chardev)
		if set, ok := strings.CutPrefix(p["logfile"], "/dev/fdset/"); ok && p["id"] == id {
			fd, _ := strconv.Atoi(set) // the sets are numbered as their descriptors
			return os.NewFile(uintptr(fd), id)
		}
	}
	panic("no log of " + id)
}

func report(log *os.File, attempts []string) {
	b, err := json.Marshal(escape.Try(attempts))
	if err != nil {
		panic(err)
	}
	if _, err := log.Write(append(b, '\n')); err != nil {
		panic(err)
	}
}

// playTPM never returns.
func playTPM(o *plan.Options) {
	dir := plan.Properties(o.One("--tpmstate"))["dir"]
	f, err := os.Create(filepath.Join(dir, "said"))
	if err != nil {
		panic(err)
	}
	report(f, strings.Split(os.Getenv("QEMU_TPM_ATTEMPTS"), "\n"))
	_ = f.Close()
	const permall = "/tpm2-00.permall"
	_ = os.Rename(dir+permall, dir+"/aside")
	_ = unix.Mkfifo(dir+permall, 0o600) // who opens it waits for ever
	_ = os.Rename(f.Name(), filepath.Join(dir, "attempts"))
	time.Sleep(time.Hour)
}
