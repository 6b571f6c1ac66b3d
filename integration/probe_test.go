package integration

import (
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/integration/qemus"
	facts "github.com/vmlatch/vmlatch/launcher/host"
)

// TestProbe compares what each QEMU reports with its release notes.
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
				snp:    q.HasObject("sev-snp-guest", "policy", "id-block", "host-data", "kernel-hashes"),
				tdx:    q.HasObject("tdx-guest", "attributes", "mrconfigid", "quote-generation-socket"),
				legacy: q.HasObject("sev-guest", "legacy-vm-type"),
				reset:  q.HasFeature("tdx-guest", "confidential-guest-reset"),
			}
			if got != w || !strings.HasPrefix(q.Version, version) {
				t.Errorf("QEMU %s: %+v, want %+v", q.Version, got, w)
			}
			if !q.HasObject("sev-guest", "policy", "session-file", "cbitpos") {
				t.Errorf("properties of sev-guest: %v", q.Objects["sev-guest"])
			}
			if q.HasObject("sev-guest", "certs-path") {
				t.Error("sev-guest has certs-path, which no release has")
			}
			if q.HasObject("mktme-guest") {
				t.Error("it has mktme-guest, which no release has")
			}
			if !strings.HasPrefix(q.Machines["q35"], "pc-q35-"+version) {
				t.Errorf("q35 is %q, want a pc-q35-%s", q.Machines["q35"], version)
			}
			if !q.HasMachine("smm") || q.HasMachine("nonsense") {
				t.Errorf("machine property smm: %v, want true; nonsense: %v, want false",
					q.HasMachine("smm"), q.HasMachine("nonsense"))
			}
			if len(q.CPUs) < 50 {
				t.Errorf("%d CPU models, want at least 50", len(q.CPUs))
			}
		})
	}
}
