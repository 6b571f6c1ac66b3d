package sev_test

import (
	"bytes"
	"encoding/hex"
	"io"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/internal/vectors"
	"github.com/vmlatch/vmlatch/firmware/sev"
)

type inputs struct {
	Kernel  string `json:"kernel"`
	Initrd  string `json:"initrd"`
	Cmdline string `json:"cmdline"`
}

func (in inputs) kernelHashes(t *testing.T) *sev.KernelHashes {
	if in.Kernel == "" {
		return nil
	}
	var initrd io.Reader
	if in.Initrd != "" {
		initrd = bytes.NewReader(vectors.File(t, in.Initrd))
	}
	h, err := sev.HashKernel(nil, initrd, in.Cmdline)
	if err != nil {
		t.Fatal(err)
	}
	h.Kernel = vectors.SHA256(t, in.Kernel)
	return &h
}

func TestKernelHashTableVectors(t *testing.T) {
	vectors.Each(t, "kernel-hashes-table", func(t *testing.T, v vectors.Vector) {
		var want struct{ Hex string }
		v.Want(t, &want)
		var in inputs
		v.In(t, &in)
		table := in.kernelHashes(t).Table()
		if got := hex.EncodeToString(table[:]); got != want.Hex {
			t.Errorf("table %s, want %s", got, want.Hex)
		}
	})
}

func TestPolicyRoundTrip(t *testing.T) {
	for _, p := range []sev.Policy{0, 1, 3, 0x37, 0x0133_0003, 0x3f} {
		s := "0"
		if words := p.Words(); len(words) > 0 {
			s = strings.Join(words, ",")
		}
		if got, err := sev.ParsePolicy(s); err != nil || got != p {
			t.Errorf("%s parses to %v, %v, want %v", s, got, err, p)
		}
	}
	for _, bad := range []string{
		"", "0x40", "nodebug", "api=1", "no-debug,,es", "0x100000000", "api=1.51.2", "api=1.5x", "api=256.1",
	} {
		if p, err := sev.ParsePolicy(bad); err == nil {
			t.Errorf("%q parses to %v", bad, p)
		}
	}
}

func TestPolicyAdmits(t *testing.T) {
	p, err := sev.ParsePolicy("no-debug,api=1.51")
	if err != nil {
		t.Fatal(err)
	}
	for b, want := range map[sev.Build]bool{
		{Major: 1, Minor: 50}: false, {Major: 1, Minor: 51}: true, {Major: 2}: true, {Major: 0, Minor: 99}: false,
	} {
		if got := p.Admits(b); got != want {
			t.Errorf("%v on %v: %t, want %t", p, b, got, want)
		}
	}
}

func TestStatusTable(t *testing.T) {
	seen := map[string]bool{}
	for i, s := range sev.Statuses() {
		if int(s) != i {
			t.Errorf("row %d has code %d", i, s)
		}
		if seen[s.Name()] || s.Name() == "" || s != 0 && s.Text() == "" {
			t.Errorf("code %d: name %q or text %q is missing or twice", s, s.Name(), s.Text())
		}
		seen[s.Name()] = true
	}
	if sev.Status(0x7777).Text() != "unknown error" {
		t.Error("an unknown code must say so")
	}
}
