package integration

import (
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/integration/qemus"
	facts "github.com/vmlatch/vmlatch/launcher/host"
)

// TestProbe compares what each QEMU says with what its release notes say.
func TestProbe(t *testing.T) {
	type want struct{ snp, tdx, legacy, reset bool }
	for version, w := range map[string]want{
		"7.2":  {},
		"10.0": {snp: true, legacy: true},
		"11.1": {snp: true, legacy: true, tdx: true, reset: true},
	} {
		t.Run(version, func(t *testing.T) {
			q, err := facts.Probe(t.Context(), qemus.Version(t, version))
			if err != nil {
				t.Fatal(err)
			}
			got := want{
				q.HasObject("sev-snp-guest", "policy", "id-block", "host-data", "kernel-hashes"),
				q.HasObject("tdx-guest", "attributes", "mrconfigid", "quote-generation-socket"),
				q.HasObject("sev-guest", "legacy-vm-type"), q.HasFeature("tdx-guest", "confidential-guest-reset"),
			}
			if got != w || !strings.HasPrefix(q.Version, version) {
				t.Errorf("QEMU %s: %+v, want %+v", q.Version, got, w)
			}
			if !q.HasObject("sev-guest", "policy", "session-file", "cbitpos") || q.HasObject("sev-guest", "certs-path") || q.HasObject("mktme-guest") {
				t.Errorf("objects: %v", q.Objects["sev-guest"])
			}
			if !strings.HasPrefix(q.Machines["q35"], "pc-q35-"+version) || !q.HasMachine("smm") || q.HasMachine("nonsense") || len(q.CPUs) < 50 {
				t.Errorf("machines %v, %d CPUs", q.Machines, len(q.CPUs))
			}
		})
	}
}
