package slot

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/integration/leak"
)

// TestMain lets the test binary be a process that starts a VM: it takes a lease,
// hands it to a child that stands for QEMU, tells its number, and ends.
func TestMain(m *testing.M) {
	if dir := os.Getenv("SLOT_TEST_DIR"); dir != "" {
		os.Exit(starter(dir))
	}
	leak.VerifyTestMain(m)
}

// take takes a slot until the test ends.
func take(t *testing.T, p Pool) *Lease {
	t.Helper()
	l, err := p.Take()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.File().Close() })
	return l
}

func starter(dir string) int {
	size, _ := strconv.Atoi(os.Getenv("SLOT_TEST_SIZE"))
	l, err := Pool{Dir: dir, Name: "sev", Size: size, InUse: -1}.Take()
	if errors.Is(err, ErrNone) {
		fmt.Println("none")
		return 0
	}
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	qemu := exec.Command("sleep", os.Getenv("SLOT_TEST_LIFE"))
	qemu.ExtraFiles = []*os.File{l.File()}
	if err := qemu.Start(); err != nil {
		fmt.Println("error", err)
		return 1
	}
	fmt.Println("taken", qemu.Process.Pid)
	return 0
}

// TestManyTakes: of 64 that take slots at once 15 get one each, and of 64 that take them
// again and again never do two have the same.
func TestManyTakes(t *testing.T) {
	const size, lanes, rounds = 15, 64, 20
	pool := Pool{Dir: t.TempDir(), Name: "sev", Size: size, InUse: -1}
	var holders [size]atomic.Int64
	var first [lanes]*Lease
	take := func() *Lease {
		l, err := pool.Take()
		if err != nil && !errors.Is(err, ErrNone) {
			t.Error(err)
		}
		if err == nil && holders[l.Number].Add(1) > 1 {
			t.Errorf("slot %d was leased twice", l.Number)
		}
		return l
	}
	release := func(l *Lease) {
		if l != nil {
			holders[l.Number].Add(-1)
			_ = l.File().Close()
		}
	}
	var wg sync.WaitGroup
	for i := range lanes {
		wg.Go(func() { first[i] = take() })
	}
	wg.Wait()
	taken := 0
	for _, l := range first {
		if l != nil {
			taken++
		}
		release(l)
	}
	if taken != size {
		t.Errorf("%d of %d got a slot, want %d", taken, lanes, size)
	}
	for range lanes {
		wg.Go(func() {
			for range rounds {
				release(take())
			}
		})
	}
	wg.Wait()
	if n, err := pool.Leased(); n != 0 || err != nil {
		t.Errorf("in the end %d are leased, %v, want 0", n, err)
	}
}

// TestManyStarts: many processes want one of 15 slots, and some are killed wherever
// they are. Never are 16 held, and in the end none is lost.
func TestManyStarts(t *testing.T) {
	const size, starts, lanes = 15, 300, 64
	pool := Pool{Dir: t.TempDir(), Name: "sev", Size: size, InUse: -1}
	var most, taken, refused, killed atomic.Int64
	done := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() {
		for {
			n, err := pool.Leased()
			if err != nil {
				t.Error(err)
			}
			most.Store(max(most.Load(), int64(n)))
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	var wg sync.WaitGroup
	work := make(chan int)
	for range lanes {
		wg.Go(func() {
			for range work {
				cmd := exec.Command(os.Args[0])
				cmd.Env = append(os.Environ(), "SLOT_TEST_DIR="+pool.Dir, "SLOT_TEST_SIZE="+strconv.Itoa(size),
					"SLOT_TEST_LIFE=0.3")
				out, err := cmd.StdoutPipe()
				if err == nil {
					err = cmd.Start()
				}
				if err != nil {
					t.Error(err)
					continue
				}
				if rand.IntN(4) == 0 { // somewhere in its life
					time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
					_ = cmd.Process.Kill()
					killed.Add(1)
				}
				line, _ := bufio.NewReader(out).ReadString('\n')
				_ = cmd.Wait()
				switch {
				case strings.HasPrefix(line, "taken"):
					taken.Add(1)
				case strings.HasPrefix(line, "none"):
					refused.Add(1)
				case line != "":
					t.Error(line)
				}
			}
		})
	}
	for i := range starts {
		work <- i
	}
	close(work)
	wg.Wait()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if n, _ := pool.Leased(); n == 0 {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("%d slots are lost", n)
		}
	}
	close(done)
	watcher.Wait()
	t.Logf("%d taken, %d refused, %d killed, at most %d at once", taken.Load(), refused.Load(), killed.Load(),
		most.Load())
	// How many are refused depends on how fast this machine starts processes.
	if most.Load() > size || most.Load() == 0 || taken.Load() == 0 {
		t.Errorf("%d slots were held at once, %d starts got one, want 1 to %d, and some",
			most.Load(), taken.Load(), size)
	}
}

func TestTake(t *testing.T) {
	p := Pool{Dir: t.TempDir(), Name: "sev-es", Size: 2, InUse: -1}
	if n, err := p.Leased(); n != 0 || err != nil {
		t.Errorf("%d leased, %v, want 0", n, err)
	}
	a, b := take(t, p), take(t, p)
	if a.Number != 0 || b.Number != 1 {
		t.Fatalf("numbers %d and %d, want 0 and 1", a.Number, b.Number)
	}
	var full *FullError
	if _, err := p.Take(); !errors.As(err, &full) || !errors.Is(err, ErrNone) || full.Leased != 2 {
		t.Errorf("a third of two: %v, want 2 leased", err)
	} else if want := "no free encryption slot: pool sev-es has 2, and 2 are leased"; err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
	other := p
	other.Name = "sev"
	take(t, other)
	_ = a.File().Close()
	if c := take(t, p); c.Number != a.Number {
		t.Errorf("number %d, want %d, which was given back", c.Number, a.Number)
	}

	busy := Pool{Dir: t.TempDir(), Name: "sev", Size: 3, InUse: 3}
	if _, err := busy.Take(); !errors.As(err, &full) || full.InUse != 3 || !strings.Contains(err.Error(), "in use") {
		t.Errorf("the kernel says that all are taken: %v, want 3 in use", err)
	}
	want := "no free encryption slot: pool sev has 3, and 3 are leased"
	if got := (&FullError{"sev", 3, 3, 3}).Error(); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if n, err := busy.Used(); n != 3 || err != nil {
		t.Errorf("used %d, %v, want 3", n, err)
	}
	if _, err := (Pool{Dir: t.TempDir(), Name: "sev", Size: 0, InUse: -1}).Take(); !errors.Is(err, ErrNone) {
		t.Errorf("a slot of an empty pool: %v, want ErrNone", err)
	}
	open := Pool{Dir: t.TempDir(), Name: "sev", Size: Unlimited, InUse: 7}
	for range 20 {
		take(t, open)
	}
	if n, err := open.Used(); n != 20 || err != nil {
		t.Errorf("used %d, %v, want 20", n, err)
	}
}

// TestLoweredLimit: leases of higher numbers count.
func TestLoweredLimit(t *testing.T) {
	p := Pool{Dir: t.TempDir(), Name: "sev", Size: 20, InUse: -1}
	var leases []*Lease
	for range 15 {
		leases = append(leases, take(t, p))
	}
	for _, l := range leases[:5] {
		_ = l.File().Close()
	}
	p.Size = 10
	var full *FullError
	if _, err := p.Take(); !errors.As(err, &full) || full.Leased != 10 {
		t.Errorf("an eleventh of ten: %v, want 10 leased", err)
	}
	p.Size = 0
	if _, err := p.Take(); !errors.As(err, &full) || full.Leased != 10 {
		t.Errorf("an eleventh of none: %v, want 10 leased", err)
	}
}

// TestHostileDirectory: links are not followed.
func TestHostileDirectory(t *testing.T) {
	p := Pool{Dir: t.TempDir(), Name: "sev", Size: 1, InUse: -1}
	if _, err := p.Leased(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(p.dir(), 0o700), os.Symlink("/etc/passwd", p.path(0))); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Take(); err == nil || errors.Is(err, ErrNone) {
		t.Errorf("a link as a slot: %v, want an error that is not ErrNone", err)
	}
	p.Size = Unlimited // so that none is counted first
	if _, err := p.Take(); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link as a slot of an unlimited pool: %v, want ELOOP", err)
	}
}

// TestErrorsAreNotFreeSlots: what cannot be looked at is not counted as free.
func TestErrorsAreNotFreeSlots(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		spoil        func(p Pool) error
		counts       bool // all the same
		takes, wants error
	}{
		"a slot is a link": {
			func(p Pool) error { return os.Symlink(file, p.path(7)) }, false, unix.ELOOP,
			unix.ELOOP,
		},
		"the lock is a link": {
			func(p Pool) error { return relink(p.lockFile(), file) }, false, unix.ELOOP,
			unix.ELOOP,
		},
		"the pool is a link": {
			func(p Pool) error { return relink(p.dir(), t.TempDir()) }, true,
			unix.ENOTDIR, nil,
		},
		"all pools are a link": {
			func(p Pool) error { return relink(p.Dir, t.TempDir()) }, true, unix.ENOTDIR,
			nil,
		},
		"the pool is a file": {
			func(p Pool) error { return relink(p.dir(), file) }, false, unix.ENOTDIR,
			unix.ENOTDIR,
		},
		"other files do not matter": {func(p Pool) error {
			return os.Symlink(file,
				filepath.Join(p.dir(), "notes"))
		}, true, nil, nil},
	} {
		p := Pool{Dir: filepath.Join(t.TempDir(), "slots"), Name: "sev", Size: 20, InUse: -1}
		_ = take(t, p).File().Close()
		if err := c.spoil(p); err != nil {
			t.Fatal(err)
		}
		l, err := p.Take()
		if !errors.Is(err, c.takes) || errors.Is(err, ErrNone) || (err == nil) != (c.takes == nil) {
			t.Errorf("%s: Take: %v, want %v", what, err, c.takes)
		}
		if err == nil {
			_ = l.File().Close()
		}
		for name, count := range map[string]func() (int, error){"Leased": p.Leased, "Used": p.Used} {
			if _, err := count(); (err == nil) != c.counts || !c.counts && !errors.Is(err, c.wants) {
				t.Errorf("%s: %s: %v, want %v", what, name, err, c.wants)
			}
		}
	}
	if _, err := (Pool{Dir: file, Name: "sev", Size: 1}).Take(); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a directory below a file: %v, want ENOTDIR", err)
	}
	if _, err := (Pool{Dir: t.TempDir(), Name: "sev"}).leased(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a pool without a directory: %v, want ErrNotExist", err)
	}
}

// relink puts a link to target in the place of a file or a directory.
func relink(name, target string) error {
	return errors.Join(os.RemoveAll(name), os.Symlink(target, name))
}
