// Command testlog runs "go test -json", shows what matters of it, and fails on a
// test that is skipped for a reason that is not on a list.
//
//	testlog [-skips FILE] go test -json ./...
//
// It prints each package's line as go test does, and of tests that fail all that
// they wrote. Without a list no test may be skipped. The last line counts tests,
// subtests included; before it are the slowest.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
)

func main() {
	list := flag.String("skips", "", "`file` with the reasons for which tests may be skipped")
	flag.Parse()
	if err := run(*list, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "testlog:", err)
		os.Exit(1)
	}
}

func run(list string, command []string) error {
	if len(command) == 0 {
		return errors.New("give the command that runs the tests")
	}
	var allowed reasons
	if list != "" {
		b, err := os.ReadFile(list)
		if err != nil {
			return err
		}
		if allowed, err = parseReasons(string(b)); err != nil {
			return fmt.Errorf("%s: %w", list, err)
		}
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	l := newLog(os.Stdout, allowed)
	readErr := l.read(out)
	err = errors.Join(readErr, cmd.Wait())
	if !l.finish() && err == nil {
		err = errors.New("tests failed, or were skipped for a reason that is not listed")
	}
	return err
}
