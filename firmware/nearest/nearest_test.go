package nearest

import (
	"slices"
	"testing"
)

var technologies = []string{"sev", "sev-es", "sev-snp", "tdx", "mktme", "none"}

func TestWord(t *testing.T) {
	for _, c := range []struct {
		word  string
		known []string
		want  string
	}{
		{"svs", technologies, "sev"},
		{"sve", technologies, "sev"},
		{"tdz", technologies, "tdx"},
		{"ps", technologies, ""},
		{"technolgy", []string{"policy", "technology"}, "technology"},
		{"confidental", []string{"config", "confidential"}, "confidential"},
		{"SEV-SNP", technologies, "sev-snp"},
		{"snp", technologies, "sev-snp"},
		{"es", technologies, "sev-es"},
		{"sevsnp", technologies, "sev-snp"},
		{"sgx", technologies, ""},
		{"", technologies, ""},
		{"sev", nil, ""},
		{"memroy", []string{"name", "memory"}, "memory"},
		{"Name", []string{"name", "memory"}, "name"},
		{"key", []string{"id-key", "author-key", "kex"}, "kex"}, // the part of two words decides nothing
		{"no-debug", []string{"smt", "debug"}, ""},
		{"nodebug", []string{"smt", "debug"}, ""},
		{"debug", []string{"no-debug"}, ""},
		{"nodebug", []string{"no-debug", "no-send"}, "no-debug"},
	} {
		if got := Word(c.word, c.known); got != c.want {
			t.Errorf("Word(%q, %q) = %q, want %q", c.word, c.known, got, c.want)
		}
	}
}

func TestUnknown(t *testing.T) {
	for word, want := range map[string]string{
		"svs": `unknown technology "svs": did you mean "sev"?`,
		"sgx": `unknown technology "sgx": must be sev, sev-es, sev-snp, tdx, mktme or none`,
	} {
		if got := Unknown("technology", word, technologies).Error(); got != want {
			t.Errorf("%q: %s, want %s", word, got, want)
		}
	}
}

func TestList(t *testing.T) {
	for _, c := range []struct {
		want  string
		words []string
	}{{"", nil}, {"a", []string{"a"}}, {"a or b", []string{"a", "b"}}, {"a, b or c", []string{"a", "b", "c"}}} {
		if got := List(slices.Clone(c.words)); got != c.want {
			t.Errorf("List(%q) = %q, want %q", c.words, got, c.want)
		}
	}
}
