package spec

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// credentialPrefix begins the name of a file that the service manager hands over
// (systemd.exec(5), LoadCredential=).
const credentialPrefix = "credential:"

// Credential is the path behind credential:NAME; any other text is returned as it is.
func Credential(text string) (string, error) {
	name, ok := strings.CutPrefix(text, credentialPrefix)
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
