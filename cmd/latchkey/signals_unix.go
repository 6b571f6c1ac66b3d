//go:build unix

package main

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// terminate is what a service manager stops a program with.
var terminate os.Signal = unix.SIGTERM

// notifyReload passes on what asks for a reload.
func notifyReload(c chan<- os.Signal) { signal.Notify(c, unix.SIGHUP) }
