package main

import "golang.org/x/sys/windows"

// hideMemory keeps keys out of the dumps that error reporting makes.
func hideMemory() {
	windows.SetErrorMode(windows.SEM_FAILCRITICALERRORS | windows.SEM_NOGPFAULTERRORBOX)
}
