package slot

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestMain lets the test binary be a process that starts a VM: it takes a lease,
// hands it to a child that stands for QEMU, says so, and ends.
func TestMain(m *testing.M) {
	if dir := os.Getenv("SLOT_TEST_DIR"); dir != "" {
		os.Exit(starter(dir))
	}
	os.Exit(m.Run())
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

// TestThousandStarts: a thousand processes want one of 15 slots, and some are
// killed wherever they are. Never are 16 held, and in the end none is lost.
func TestThousandStarts(t *testing.T) {
	const size, starts, lanes = 15, 1000, 64
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
				cmd.Env = append(os.Environ(), "SLOT_TEST_DIR="+pool.Dir, "SLOT_TEST_SIZE="+strconv.Itoa(size), "SLOT_TEST_LIFE=0.2")
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
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if n, _ := pool.Leased(); n == 0 {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("%d slots are lost", n)
		}
	}
	close(done)
	watcher.Wait()
	t.Logf("%d taken, %d refused, %d killed, at most %d at once", taken.Load(), refused.Load(), killed.Load(), most.Load())
	if most.Load() > size || most.Load() == 0 || taken.Load() == 0 || refused.Load() == 0 {
		t.Errorf("%d slots were held at once, %d starts got one, %d were refused", most.Load(), taken.Load(), refused.Load())
	}
}

func TestTake(t *testing.T) {
	p := Pool{Dir: t.TempDir(), Name: "sev-es", Size: 2, InUse: -1}
	if n, err := p.Leased(); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	a, err := p.Take()
	if err != nil {
		t.Fatal(err)
	}
	b, err := p.Take()
	if err != nil || a.Number == b.Number {
		t.Fatalf("%v, both have number %d", err, a.Number)
	}
	var full *FullError
	if _, err := p.Take(); !errors.As(err, &full) || !errors.Is(err, ErrNone) || full.Leased != 2 {
		t.Errorf("a third of two: %v", err)
	}
	other := p
	other.Name = "sev"
	if l, err := other.Take(); err != nil {
		t.Errorf("another pool: %v", err)
	} else {
		_ = l.File().Close()
	}
	runtime.KeepAlive(b)
	_ = a.File().Close()
	if c, err := p.Take(); err != nil || c.Number != a.Number {
		t.Errorf("what was given back: %+v, %v", c, err)
	}

	busy := Pool{Dir: t.TempDir(), Name: "sev", Size: 3, InUse: 3}
	if _, err := busy.Take(); !errors.As(err, &full) || full.InUse != 3 || !strings.Contains(err.Error(), "in use") {
		t.Errorf("the kernel says that all are taken: %v", err)
	}
	if n, err := busy.Used(); n != 3 || err != nil {
		t.Errorf("used %d, %v", n, err)
	}
	if _, err := (Pool{Dir: t.TempDir(), Name: "sev", Size: 0, InUse: -1}).Take(); !errors.Is(err, ErrNone) {
		t.Errorf("a slot of an empty pool: %v", err)
	}
	open := Pool{Dir: t.TempDir(), Name: "sev", Size: Unlimited, InUse: 7}
	var leases []*Lease
	for range 20 {
		l, err := open.Take()
		if err != nil {
			t.Fatal(err)
		}
		leases = append(leases, l)
	}
	if n, err := open.Used(); n != 20 || err != nil {
		t.Errorf("used %d, %v", n, err)
	}
	runtime.KeepAlive(leases) // a file that nobody keeps is closed
}

// TestLoweredLimit: leases of higher numbers count.
func TestLoweredLimit(t *testing.T) {
	p := Pool{Dir: t.TempDir(), Name: "sev", Size: 20, InUse: -1}
	var leases []*Lease
	for range 15 {
		l, err := p.Take()
		if err != nil {
			t.Fatal(err)
		}
		leases = append(leases, l)
	}
	for _, l := range leases[:5] {
		_ = l.File().Close()
	}
	p.Size = 10
	var full *FullError
	if _, err := p.Take(); !errors.As(err, &full) || full.Leased != 10 {
		t.Errorf("an eleventh of ten: %v", err)
	}
	runtime.KeepAlive(leases)
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
		t.Errorf("a link as a slot: %v", err)
	}
}
