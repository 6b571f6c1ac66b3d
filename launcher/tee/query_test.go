package tee_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
)

// script is a QEMU that answers commands by their names.
type script map[string]string

// errUnknown is what it says to others.
var errUnknown = errors.New("command not found")

// Execute implements qmp.Executor.
func (s script) Execute(_ context.Context, command string, _, out any) error {
	answer, ok := s[command]
	if !ok {
		return errUnknown
	}
	return json.Unmarshal([]byte(answer), out)
}

// TestQuery: what QEMU and the platform say must be what was asked for.
func TestQuery(t *testing.T) {
	const sevGood = `{"enabled":true,"policy":11,"state":"launch-secret","api-major":1,"api-minor":55,"build-id":7}`
	const snpGood = `{"enabled":true,"sev-type":"sev-snp","snp-policy":196608,"api-major":1,"api-minor":55,"build-id":7}`
	change := func(text, old, with string) script {
		if !strings.Contains(text, old) {
			t.Fatalf("%s has no %s", text, old)
		}
		return script{"query-sev": strings.Replace(text, old, with, 1)}
	}
	paused, running := script{"query-status": `{"running":false}`}, script{"query-status": `{"running":true}`}
	for _, c := range []struct {
		tech string
		q    script
		want string // part of the error; "" for none
	}{
		{"sev", change(sevGood, "", ""), ""},
		{"sev", change(sevGood, `"enabled":true`, `"enabled":false`), "SEV is not enabled"},
		{"sev", change(sevGood, `"policy":11`, `"policy":1`), "with policy 0x1 instead of 0xb"},
		{
			"sev", change(sevGood, "launch-secret", "launch-update"),
			"did not measure the guest: its state is launch-update",
		},
		{"sev", change(sevGood, "launch-secret", "running"), "its state is running instead of launch-secret"},
		{"sev", script{}, errUnknown.Error()},
		{"sev-es", change(sevGood, `"policy":11`, `"policy":15`), ""},
		{"sev-es", change(sevGood, `"policy":11`, `"policy":11`), "with policy 0xb instead of 0xf"},
		{"sev-snp", change(snpGood, "", ""), ""},
		{"sev-snp", change(snpGood, `"enabled":true`, `"enabled":false`), "SEV-SNP is not enabled"},
		{"sev-snp", change(snpGood, `"sev-snp"`, `"sev"`), "SEV-SNP is not enabled"},
		{"sev-snp", change(snpGood, "196608", "720896"), "with policy 0xb0000 instead of 0x30000"},
		{"sev-snp", script{}, errUnknown.Error()},
		{"tdx", paused, ""},
		{"mktme", paused, ""},
		{"none", paused, ""},
		{"tdx", running, "QEMU runs the guest"},
		{"mktme", running, "QEMU runs"},
		{"none", running, "QEMU runs"},
		{"tdx", script{}, errUnknown.Error()},
	} {
		g := mustGuest(t, specOf(c.tech))
		p, err := planOf(g, testhost.Facts(withMKTME))
		if err != nil {
			t.Fatal(err)
		}
		got, err := g.Query(t.Context(), p, c.q)
		if c.want != "" {
			if err == nil || got != nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s, %v: %+v, %v, want an error with %q", c.tech, c.q, got, err, c.want)
			}
			continue
		}
		if err != nil || (got != nil) != strings.HasPrefix(c.tech, "sev") {
			t.Errorf("%s, %v: %+v, %v, want a record of AMD's alone", c.tech, c.q, got, err)
		}
		if got == nil {
			continue
		}
		if b := got.Build; b.Major != 1 || b.Minor != 55 || b.Build != 7 || got.Inputs.Firmware != "/specs/fw" {
			t.Errorf("%s: record %+v, want version 1.55 build 7 and firmware /specs/fw", c.tech, got)
		}
		policy := map[string]uint64{"sev": 11, "sev-es": 15, "sev-snp": 0x30000}[c.tech]
		if uint64(got.Policy)+uint64(got.SNPPolicy) != policy {
			t.Errorf("%s: recorded policies %#x and %#x, want %#x", c.tech, uint32(got.Policy),
				uint64(got.SNPPolicy), policy)
		}
	}
}
