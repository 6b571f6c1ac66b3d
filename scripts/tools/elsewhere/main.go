// Command elsewhere type-checks programs, and all that they import, as other systems would build
// them. It compiles nothing, so that it takes seconds where builds take minutes; assembly
// and the linker are left to the release, which builds them.
//
//	elsewhere SYSTEM/PROCESSOR PACKAGE...
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/tools/go/packages"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: elsewhere SYSTEM/PROCESSOR PACKAGE...")
		os.Exit(2)
	}
	if err := check(os.Stderr, os.Args[1], os.Args[2:]...); err != nil {
		fmt.Fprintln(os.Stderr, "elsewhere:", err)
		os.Exit(1)
	}
}

var errBroken = errors.New("does not build there")

// check writes what is wrong to w, and is an error if there is anything.
func check(w io.Writer, platform string, patterns ...string) error {
	system, processor, ok := strings.Cut(platform, "/")
	if !ok {
		return fmt.Errorf("%q: must be SYSTEM/PROCESSOR, such as darwin/arm64", platform)
	}
	list, err := packages.Load(&packages.Config{
		Mode: packages.LoadAllSyntax,
		Env:  append(os.Environ(), "CGO_ENABLED=0", "GOOS="+system, "GOARCH="+processor),
	}, patterns...)
	if err != nil {
		return err
	}
	broken := 0
	packages.Visit(list, nil, func(p *packages.Package) {
		for _, e := range p.Errors {
			fmt.Fprintln(w, e)
			broken++
		}
	})
	if broken > 0 || len(list) == 0 {
		return fmt.Errorf("%s: %d errors in %s: %w", platform, broken, strings.Join(patterns, " "), errBroken)
	}
	return nil
}
