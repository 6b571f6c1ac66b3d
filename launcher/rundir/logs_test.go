package rundir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLogsAreBounded: the newest part of a log is kept while its writer goes on, on file
// systems that can move it and on those that cannot.
func TestLogsAreBounded(t *testing.T) {
	for _, base := range []string{t.TempDir(), "/dev/shm"} {
		dir, err := os.MkdirTemp(base, "logs")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		const most = 64 << 10
		r := Root{Run: dir + "/run", State: dir + "/state", LogMax: most}
		d, err := r.Create(t.Context(), "vm")
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if err := d.WriteRecord(&Record{Name: "vm", Settled: true}); err != nil {
			t.Fatal(err)
		}
		log, err := d.CreateLog(ConsoleLog)
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
		n := 0
		for range 20 {
			for range 1000 {
				fmt.Fprintf(log, "line %08d\n", n)
				n++
			}
			if _, _, err := r.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			var st unix.Stat_t
			if err := unix.Stat(log.Name(), &st); err != nil || st.Blocks*512 > most+int64(st.Blksize) {
				t.Fatalf(
					"%s: %d bytes are taken after %d lines, %v, want at most %d",
					base,
					st.Blocks*512,
					n,
					err,
					most,
				)
			}
		}
		f, err := d.OpenLog(ConsoleLog, false)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got, err := io.ReadAll(f)
		last := fmt.Sprintf("line %08d\n", n-1)
		if err != nil || !bytes.HasSuffix(got, []byte(last)) || len(got) < most/2 || bytes.Contains(got, []byte{0}) {
			t.Errorf("%s: %d bytes that end with %q, %v, want the newest lines up to %q", base, len(got),
				got[max(0, len(got)-20):], err, last)
		}
		from := bytes.Index(got, []byte("\n")) + 1 // the first line may be cut
		for i, line := range bytes.Split(bytes.TrimSpace(got[from:]), []byte("\n")) {
			var at int
			if _, err := fmt.Sscanf(string(line), "line %d", &at); err != nil || i > 0 && len(line) != 13 {
				t.Fatalf("%s: line %q", base, line)
			}
		}
	}
}

// TestCreateLog: a log is made in the directory of the VM, and nowhere that a link leads to.
func TestCreateLog(t *testing.T) {
	dir := t.TempDir()
	r := Root{Run: dir + "/run", State: dir + "/state"}
	d, err := r.Create(t.Context(), "vm")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	f, err := d.CreateLog(ConsoleLog)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_APPEND == 0 {
		t.Errorf("flags %#x, %v, want O_APPEND", flags, err)
	}
	if _, err := d.CreateLog(ConsoleLog); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second one: %v, want that it exists", err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(d.State, EventsLog)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.CreateLog(EventsLog); err == nil {
		t.Error("a link is followed")
	}
	if err := os.Chmod(d.State, 0o770); err != nil {
		t.Fatal(err)
	}
	if _, err := d.CreateLog(QEMULog); !errors.Is(err, ErrUnsafe) {
		t.Errorf("in a directory of a group: %v, want ErrUnsafe", err)
	}
	elsewhere := filepath.Join(dir, "elsewhere")
	if err := errors.Join(os.Mkdir(elsewhere, 0o700), os.RemoveAll(d.State), os.Symlink(elsewhere,
		d.State)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.CreateLog(QEMULog); err == nil {
		t.Error("a link in the directory's place is followed")
	}
}

// TestStateDirectory: it is checked as the run directory is.
func TestStateDirectory(t *testing.T) {
	for mode, safe := range map[fs.FileMode]bool{
		0o700: true, 0o755: true, 0o770: false, 0o777 | fs.ModeSticky: false, 0o702: false,
	} {
		dir := t.TempDir()
		r := Root{Run: dir + "/run", State: dir + "/state"}
		if err := errors.Join(os.Mkdir(r.State, 0o700), os.Chmod(r.State, mode)); err != nil {
			t.Fatal(err)
		}
		d, err := r.Create(t.Context(), "vm")
		if safe != (err == nil) || err != nil && !errors.Is(err, ErrUnsafe) {
			t.Errorf("mode %v: %v, want safe: %t", mode, err, safe)
		}
		if d != nil {
			d.Close()
		}
	}
	dir := t.TempDir()
	r := Root{Run: dir + "/run", State: dir + "/link"}
	if err := errors.Join(os.Mkdir(dir+"/state", 0o700), os.Symlink(dir+"/state", r.State)); err != nil {
		t.Fatal(err)
	}
	d, err := r.Create(t.Context(), "vm")
	if err != nil {
		t.Fatalf("a link to our own directory: %v, want nil", err)
	}
	d.Close()
}

// TestLocksEndWithTheirContext: no call waits for the global lock longer than its caller.
func TestLocksEndWithTheirContext(t *testing.T) {
	dir := t.TempDir()
	r := Root{Run: dir + "/run", State: dir + "/state"}
	d, err := r.Create(t.Context(), "vm")
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	unlock, err := r.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := contextOf(t)
	cancel()
	for what, err := range map[string]error{
		"Create": second(r.Create(ctx, "x")), "Find": third(r.Find(ctx, "vm")), "FindLogs": third(r.FindLogs(ctx,
			"vm")),
		"Forget": r.Forget(ctx, "vm"), "List": second(r.List(ctx, true)), "NoteFailure": r.NoteFailure(ctx, "x",
			Failure{}),
	} {
		if !errors.Is(err, ctx.Err()) {
			t.Errorf("%s: %v, want the context's end", what, err)
		}
	}
}

func contextOf(t *testing.T) (context.Context, context.CancelFunc) {
	return context.WithCancel(t.Context())
}

func second[T any](_ T, err error) error { return err }

func third[T, U any](_ T, _ U, err error) error { return err }
