package confine

import (
	"os"
	"slices"
	"strings"
)

// kept are the variables that a program gets of the launcher's environment, or how their names
// begin: those that say where programs and libraries are, how they speak, and how they are
// debugged. The others are the user's, and may be secrets.
var kept = []string{
	"PATH", "TMPDIR", "TZ", "LANG", "LANGUAGE", "LC_*", "LD_*", "QEMU_*", "G_*", "MALLOC_*", "GLIBC_TUNABLES",
	"GORACE", "GOTRACEBACK", "GOCOVERDIR",
}

// Environ is the part of this process's environment that a program gets.
func Environ() (list []string) {
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		if slices.ContainsFunc(kept, func(k string) bool {
			prefix, begins := strings.CutSuffix(k, "*")
			return name == k || begins && strings.HasPrefix(name, prefix)
		}) {
			list = append(list, v)
		}
	}
	return list
}
