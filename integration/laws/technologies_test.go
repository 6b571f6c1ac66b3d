package laws

import (
	"go/ast"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// technologyName matches a technology's name in an identifier, a string or an import.
var technologyName = regexp.MustCompile(`(?i)sev|snp|tdx|mktme`)

// mayNameTechnologies lists the files outside of launcher/tee and launcher/host that
// name a technology in code (comments do not count), and why. A new technology should
// need none of them.
var mayNameTechnologies = map[string]string{
	"launcher/advice/advice.go":   "packets are firmware/sev/exchange's",
	"launcher/advice/table.go":    "the words of QEMU and the firmware name technologies",
	"launcher/advice/reported.go": "so do those that reports quote",
	"launcher/check/order.go":     "the published order of the checks, by id",
	"launcher/check/plan.go":      "a source and a cause cite QEMU's documents by name",
	"launcher/check/spec.go":      "sources cite documents by name",
	"launcher/check/device.go":    "sources cite documents by name",
	"launcher/check/host.go":      "sources cite documents by name",
	"launcher/claims.go":          "hashes of kernels are what SEV's table has",
	"launcher/fault/fixes.go":     "a build of OVMF is called AmdSev",
	"launcher/latch.go":           "the launch measurement over QMP is SEV's",
	"launcher/machine.go":         "the record of what SEV's platform said",
	"launcher/owner.go":           "measurement and packet are firmware/sev/exchange's",
	"launcher/platform.go":        "the platform's file is SEV's",
	"launcher/rundir/entry.go":    "the record of what SEV's platform said",
	"launcher/rundir/rundir.go":   "the rule for names is shared with latchkey in firmware/sev/exchange",
	"launcher/session.go":         "sessions and packets of a broker are SEV's",
	"launcher/start.go":           "the record of what SEV's platform said",
	"cmd/vmlatch/host.go":         "facts for schedulers name the API of a platform",
	"cmd/vmlatch/latch.go":        "packets are firmware/sev/exchange's",
	"cmd/vmlatch/look.go":         "inspect shows what SEV's platform said",
	"cmd/vmlatch/record.go":       "the published record of what SEV's platform said",
}

// TestTechnologiesStayHome: only the rooms of technologies know them by name.
func TestTechnologiesStayHome(t *testing.T) {
	seen := map[string]bool{}
	eachFile(t, func(f *sourceFile) {
		if !strings.HasPrefix(f.name, "launcher/") && !strings.HasPrefix(f.name, "cmd/vmlatch/") ||
			strings.HasPrefix(f.name, "launcher/tee/") || strings.HasPrefix(f.name, "launcher/host/") ||
			strings.HasPrefix(f.name, "launcher/internal/testhost/") {
			return
		}
		names := namesIn(f.File)
		seen[f.name] = len(names) > 0
		if reason := mayNameTechnologies[f.name]; len(names) > 0 && reason == "" {
			t.Errorf("%s names a technology (%s): move it to launcher/tee, or give a reason",
				f.name, strings.Join(names, ", "))
		}
	})
	for path, reason := range mayNameTechnologies {
		if !seen[path] {
			t.Errorf("%s names no technology any more (%s): take it off the list", path, reason)
		}
	}
}

// namesIn lists the identifiers and literals of a file that name a technology.
func namesIn(file *ast.File) (names []string) {
	ast.Inspect(file, func(n ast.Node) bool {
		text := ""
		switch n := n.(type) {
		case *ast.Ident:
			text = n.Name
		case *ast.BasicLit:
			if !strings.Contains(n.Value, "\n") { // else it is a help text, whose examples may name them
				text = n.Value
			}
		}
		if text != "" && technologyName.MatchString(words(text)) && !slices.Contains(names, text) {
			names = append(names, text)
		}
		return true
	})
	return names
}

// words leaves out of a text what only looks like a technology's name.
func words(text string) string {
	return regexp.MustCompile(`(?i)several|seven|severity|severities|sever\b`).ReplaceAllString(text, "")
}
