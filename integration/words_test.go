package integration

import (
	"bytes"
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/integration/qemus"
	"github.com/vmlatch/vmlatch/launcher/advice"
	"github.com/vmlatch/vmlatch/launcher/fault"
)

// TestWordsOfQEMUsPrograms walks through the texts with which QEMU's code for SEV, TDX, IGVM
// and KVM refuses a launch: each has advice, or is on the list of those that need none.
func TestWordsOfQEMUsPrograms(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("testdata/words-without-advice.list")
	if err != nil {
		t.Fatal(err)
	}
	var without []string
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSuffix(line, "\n"); line != "" && !strings.HasPrefix(line, "#") {
			without = append(without, line)
		}
	}
	program, err := os.ReadFile(qemus.Newest(t))
	if err != nil {
		t.Fatal(err)
	}
	about := regexp.MustCompile(
		`LAUNCH_|sev_|SEV-|SEV:|SNP|TDX|TDVF|IGVM|kvm_init|KVM_(?:SEV|TDX|CREATE)|guest_memfd|vm-type|` +
			`confidential guest`,
	)
	verb := regexp.MustCompile(`%[-+ #0-9.]*[a-z]*[duxXsplc]`)
	seen := 0
	for _, raw := range bytes.Split(program, []byte{0}) {
		text := strings.TrimSpace(string(raw))
		if len(text) < 12 || len(text) > 400 || !about.MatchString(text) || !isWords(text) {
			continue
		}
		seen++
		words := verb.ReplaceAllStringFunc(text, func(v string) string {
			if strings.HasSuffix(v, "s") {
				return "word"
			}
			return "7"
		})
		a := advice.For(&fault.Error{Kind: fault.QEMU, Err: errors.New(words)})
		if listed := slices.Contains(without, text); len(a.Fixes) == 0 && !listed {
			t.Errorf("no advice about %q", text)
		}
	}
	if seen < 40 {
		t.Errorf("%d texts found, want 40 at least: the program is not as expected", seen)
	}
}

// isWords reports whether a text of a program can be an error's: printable, with spaces, and
// not a trace's or a help's.
func isWords(text string) bool {
	if !strings.Contains(text, " ") || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
		return false
	}
	for _, prefix := range []string{
		"kvm_sev_", "kvm_set_user_memory ", "qmp_e", "kvm_init_vcpu index", "tdx_",
		"sev_handle",
	} {
		if strings.HasPrefix(text, prefix) {
			return false
		}
	}
	return true
}
