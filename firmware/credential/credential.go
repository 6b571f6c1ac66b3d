// Package credential finds the files that a service manager hands over to a service, in specs and
// in policies.
package credential

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// prefix begins the name of a file that the service manager hands over
// (systemd.exec(5), LoadCredential=).
const prefix = "credential:"

// Path is the path behind credential:NAME; any other text is returned as it is.
func Path(text string) (string, error) {
	name, ok := strings.CutPrefix(text, prefix)
	if !ok {
		return text, nil
	}
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return "", fmt.Errorf("%q: no credential can have this name", text)
	case !filepath.IsAbs(dir):
		return "", fmt.Errorf("%s: no service manager has given this process credentials", text)
	}
	return filepath.Join(dir, name), nil
}
