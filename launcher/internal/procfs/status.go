// Package procfs reads what the kernel says of a process.
package procfs

import (
	"os"
	"strings"
)

// Status is the file status of a process, or of one of its threads, whose directory it is: values
// by their keys (proc(5)).
func Status(dir string) (map[string]string, error) {
	b, err := os.ReadFile(dir + "/status")
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		all[key] = strings.TrimSpace(value)
	}
	return all, nil
}
