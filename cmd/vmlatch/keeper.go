package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// keepOwner is the hidden command that an owner's command runs under: "vmlatch __owner
// COMMAND…". Whatever the command starts ends with it, also what left its session and
// closed its descriptors, as daemons do: the kernel gives it to this process, which ends it.
const keepOwner = "__owner"

// keptFiles are the standard streams, and the lock by which the next vmlatch finds what is
// left if this process is killed.
var keptFiles = []uintptr{0, 1, 2, 3}

// keep runs a command, ends all that is left of it, and returns the command's exit code.
func keep(argv []string) int {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "vmlatch: owner's command:", err)
		return 1
	}
	runtime.LockOSThread() // the command ends with the thread that starts it
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
		Env: os.Environ(), Files: keptFiles, Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "vmlatch:", &os.PathError{Op: "exec", Path: argv[0], Err: err})
		return 1
	}
	ended := make(chan int, 1)
	go func() { ended <- reapUntil(pid) }()
	code := 128 + int(syscall.SIGTERM)
	select {
	case code = <-ended:
	case <-stop:
	}
	endChildren()
	return code
}

// reapUntil waits for a child, and for those that come to this process meanwhile.
func reapUntil(pid int) int {
	for {
		var status syscall.WaitStatus
		got, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return 1
		case got == pid && status.Signaled():
			return 128 + int(status.Signal())
		case got == pid:
			return status.ExitStatus()
		}
	}
}

// endTime bounds how long killed processes may take to end. One in the kernel's hands, or
// of another user, may never.
const endTime = 2 * time.Second

// endChildren kills the children of this process until there are none: as each ends, its
// own children come here.
func endChildren() {
	for end := time.Now().Add(endTime); time.Now().Before(end); time.Sleep(time.Millisecond) {
		for _, pid := range children() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		for {
			var status syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
			if err == syscall.ECHILD {
				return
			}
			if err != nil || pid == 0 {
				break
			}
		}
	}
}

// children lists this process's children (proc(5), /proc/PID/stat, ppid).
func children() (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	self := strconv.Itoa(os.Getpid())
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		rest := string(b)[strings.LastIndex(string(b), ")")+1:] // behind the name, which may hold anything
		if f := strings.Fields(rest); len(f) > 1 && f[1] == self {
			pids = append(pids, pid)
		}
	}
	return pids
}
