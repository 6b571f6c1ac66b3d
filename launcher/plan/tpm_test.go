package plan_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
	"github.com/vmlatch/vmlatch/launcher/plan"
)

// TestTPM: the table alone gives a TPM; its helper's command line names inherited descriptors only.
func TestTPM(t *testing.T) {
	f := testhost.Facts()
	for text, want := range map[string][]string{
		"tpm = {}":                 {"dir=/proc/self/fd/5,mode=0600", "type=unixio,clientfd=3"},
		"tpm.state = 'ephemeral'":  {"dir=/proc/self/fd/5,mode=0600"},
		"tpm.key = 'k'":            {"fd=6,mode=aes-256-cbc,format=binary"},
		"tpm.key = 'credential:k'": {"fd=6,mode=aes-256-cbc,format=binary"},
	} {
		p := mustPlan(t, text, f)
		i := slices.IndexFunc(p.Helpers, func(h plan.Helper) bool { return h.Role == "tpm" })
		if i < 0 {
			t.Errorf("%s: no helper", text)
			continue
		}
		h := p.Helpers[i]
		for _, w := range append(want, "--terminate", "--tpm2") {
			if !slices.Contains(h.Argv, w) {
				t.Errorf("%s: the helper lacks %s: %q", text, w, h.Argv)
			}
		}
		if h.Argv[1] != plan.KeepTPM || h.Argv[2] != "4" || h.FDs[1].Role != "tpm-life" {
			t.Errorf("%s: %q does not get the pipe: %+v", text, h.Argv, h.FDs)
		}
		for n, fd := range h.FDs {
			if fd.Number != 3+n {
				t.Errorf("%s: descriptor %d is number %d", text, n, fd.Number)
			}
			if strings.Contains(fd.Role, "vm-lock") || strings.Contains(fd.Role, "qmp") {
				t.Errorf("%s: the helper inherits %s", text, fd.Role)
			}
		}
		if line := strings.Join(p.Argv, " "); !strings.Contains(line, "-tpmdev emulator,id=tpm0,chardev=tpm") ||
			!strings.Contains(line, "-device tpm-crb,tpmdev=tpm0") {
			t.Errorf("%s: %s", text, line)
		}
	}
	if p := mustPlan(t, "tpm.model = 'tis'", f); !slices.Contains(p.Argv, "tpm-tis,tpmdev=tpm0") {
		t.Errorf("%q", p.Argv)
	}
	if p := mustPlan(t, "", f); strings.Contains(strings.Join(p.Argv, " "), "tpm") || len(p.Helpers) > 0 {
		t.Errorf("a TPM that was not asked for: %q", p.Argv)
	}
	for text, want := range map[string]string{
		"tpm.model = 'spi'":                      `tpm.model: "spi": must be crb or tis`,
		"tpm.state = 'kept'":                     "persistent or ephemeral",
		"tpm.trust = 'me'":                       `must be host`,
		"tpm = {state = 'ephemeral', key = 'k'}": "nothing to encrypt",
		"tpm.key = 'host-tpm'":                   "keeps keys as credentials of systemd",
		"tpm.key = \"a\\u0000b\"":                "",
	} {
		if _, err := planFor(text, f); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
