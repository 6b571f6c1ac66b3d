package host

import (
	"strings"
	"testing"
)

// TestPSPFailures: the last load counts, and an API's line in it says nothing of its end.
func TestPSPFailures(t *testing.T) {
	const (
		api, snpAPI = "ccp: SEV API:1.51 build:3\n", "ccp: SEV-SNP API:1.55 build:24\n"
		failSNP     = "ccp 0000:43:00.1: SEV-SNP: failed to INIT error 0x3\n"
		failSEV     = "ccp 0000:43:00.1: SEV: failed to INIT error 0x1, rc -5\n"
	)
	for name, c := range map[string]struct {
		log       string
		sev, snp  string // parts of the reasons; "" for none
		forbidden string
	}{
		"silence":              {"", "", "", ""},
		"well":                 {api + snpAPI, "", "", ""},
		"both":                 {failSNP + failSEV + api, "0x1, INVALID_PLATFORM_STATE", "0x3, INVALID_CONFIG", ""},
		"SNP alone":            {failSNP + api, "", "error 0x3", ""},
		"loaded again":         {failSNP + failSEV + api + api, "", "", ""},
		"again, with SNP":      {failSNP + failSEV + api + snpAPI, "", "", ""},
		"failed again":         {api + snpAPI + failSNP + api, "", "0x3", ""},
		"failed in other ways": {failSNP + api + failSEV + api, "0x1", "", "0x3"},
		"newer words":          {"ccp: SEV-SNP: failed to INIT rc -5, error 0x13\n", "", "0x13, HWERROR_PLATFORM", ""},
		"its own code": {"ccp: SEV: failed to INIT_EX error 0x8003," +
			" rc -5\n", "0x8003, which is the secure", "", ""},
		"a code to come": {"ccp: SEV: failed to INIT error 0x25, rc -5\n", "error 0x25", "", ""},
		"without a code": {"ccp: SEV: failed to INIT\n", "did not start", "", ""},
		"timed out": {
			"ccp 0000:43:00.1: sev command 0x1 timed out, disabling PSP\n" +
				"ccp 0000:43:00.1: SEV: failed to INIT error 0x0, rc -110\n" + api,
			"connection timed out (rc -110)", "given the secure processor up", "SUCCESS",
		},
		"not called": {
			"ccp: SEV: failed to INIT error 0xffffffff, rc -110\n", "connection timed out (rc -110)", "", "its own",
		},
		"died later": {
			api + snpAPI + "ccp 0000:43:00.1: sev command 0x20 timed out, disabling PSP\n",
			"0x20 timed out", "0x20 timed out", "",
		},
		"died, then loaded again": {
			api + snpAPI + "ccp 0000:43:00.1: sev command 0x20 timed out, disabling PSP\n" + api + snpAPI, "", "", "",
		},
		"disabled": {"SEV-SNP: IOMMU SNP feature not enabled, SNP disabled\n", "", "SNP disabled", ""},
	} {
		failed := pspFailures(c.log)
		for word, want := range map[string]string{"SEV": c.sev, "SEV-SNP": c.snp} {
			got := failed[word]
			if (got == "") != (want == "") || !strings.Contains(got, want) {
				t.Errorf("%s: %s: %q, want %q", name, word, got, want)
			}
		}
		if c.forbidden != "" && strings.Contains(failed["SEV"]+failed["SEV-SNP"], c.forbidden) {
			t.Errorf("%s: %v", name, failed)
		}
		if kept := relevantLines(c.log); kept != c.log {
			t.Errorf("%s: a record keeps %q", name, kept)
		}
	}
}
