package rundir_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// A VM is alive as long as a process has its lock, whatever becomes of the program
// that started it.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "rundir")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	root := rundir.Root{Run: filepath.Join(dir, "run"), State: filepath.Join(dir, "state")}

	d, err := root.Create(ctx, "guest")
	if err != nil {
		log.Fatal(err)
	}
	defer d.Close()
	qemu := exec.Command("sleep", "1000") // stands for QEMU
	qemu.ExtraFiles = []*os.File{d.VMLockFile()}
	if err := qemu.Start(); err != nil {
		log.Fatal(err)
	}
	err = d.WriteRecord(&rundir.Record{
		Schema: rundir.RecordSchema, Name: "guest", State: "running", Settled: true, PID: qemu.Process.Pid,
	})
	if err != nil {
		log.Fatal(err)
	}
	d.Unlock() // other commands may work on it now

	show := func() {
		entries, err := root.List(context.Background(), true)
		if err != nil {
			log.Fatal(err)
		}
		for _, e := range entries {
			fmt.Println(e.Name, e.Status())
		}
	}
	show()

	opened, rec, err := root.Open(ctx, "guest", time.Second)
	if err != nil {
		log.Fatal(err)
	}
	defer opened.Close()
	fmt.Println("state", rec.State)
	if err := opened.Kill(ctx); err != nil {
		log.Fatal(err)
	}
	_ = qemu.Wait()
	opened.Unlock()
	show()

	if _, removed, err := root.Sweep(ctx); err == nil {
		fmt.Println("cleared away", removed)
	}
	// Output:
	// guest alive
	// state running
	// guest ended
	// cleared away [guest]
}
