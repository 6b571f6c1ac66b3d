package exchange

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestWords(t *testing.T) {
	pin := newBroker(t).Key.String()
	base := "latch.key=" + pin + " latch.name=appliance latch.broker=port"
	for line, want := range map[string]Way{
		base:                                                      {Network: "port"},
		"console=ttyS0 " + base + " panic=1":                      {Network: "port"},
		base + " -- latch.name=other latch.bad":                   {Network: "port"},
		base + ` x="latch.name=other"`:                            {Network: "port"},
		strings.Replace(base, "=port", "=vsock:2:8440", 1):        {Network: "vsock", CID: 2, Port: 8440},
		strings.Replace(base, "=port", "=tcp:[fe80::1]:8440", 1):  {},
		strings.Replace(base, "=port", "=tcp:10.0.2.2:8440\n", 1): {},
	} {
		w, err := ParseWords(line)
		if err != nil || w.Name != "appliance" || w.Key.String() != pin ||
			want.Network != "" &&
				(w.Broker.Network != want.Network || w.Broker.CID != want.CID || w.Broker.Port != want.Port) ||
			w.Source != FromEvidence {
			t.Errorf("%q: %+v, %v", line, w, err)
			continue
		}
		if again, err := ParseWay(w.Broker.String()); err != nil || again.String() != w.Broker.String() {
			t.Errorf("%v is read again as %v, %v", w.Broker, again, err)
		}
	}
	for _, bad := range []string{
		"", "latch.name=a latch.broker=port", "latch.key=" + pin + " latch.broker=port",
		"latch.key=" + pin + " latch.name=a", base + " latch.name=appliance", base + " latch.nmae=x",
		base + " latch.source=any", base + " latch.close=maybe", base + " latch.", base + " latch.kem=none",
		base + " latch.trust=", base + " latch.trust=guest", base + " latch.trust=host latch.source=injected",
		strings.Replace(base, "appliance", "../x", 1), strings.Replace(base, "appliance", "", 1),
		strings.Replace(base, "=port", "=port:1", 1), strings.Replace(base, "=port", "=tcp:host:1", 1),
		strings.Replace(base, "=port", "=vsock:2", 1), strings.Replace(base, "=port", "=vsock:2:0", 1),
		strings.Replace(base, "ed25519:", "ed25519:=", 1), base + strings.Repeat(" x", maxCmdline/2),
		"-- " + base, `"` + base, `"latch.key=` + pin + `" latch.name=a latch.broker=port`,
	} {
		if w, err := ParseWords(bad); !errors.Is(err, ErrWords) {
			t.Errorf("%q: %+v, %v, want ErrWords", bad, w, err)
		}
	}
	if w, err := ParseWords("latch.key=" + pin + " latch.name=a latch.source=injected latch.close=no"); err != nil ||
		w.Source != FromInjected || !w.NoClose {
		t.Errorf("injected: %+v, %v", w, err)
	}
	if w, err := ParseWords(base + " latch.trust=host"); err != nil || !w.Host {
		t.Errorf("a host that is trusted: %+v, %v", w, err)
	}
	if HasWords("a b=latch.c -- latch.d") || !HasWords("x latch.bad") {
		t.Error("HasWords sees other words")
	}
}

// TestIP: addresses are read as package net/netip reads them.
func TestIP(t *testing.T) {
	for _, text := range []string{
		"1.2.3.4", "0.0.0.0", "255.255.255.255", "256.1.1.1", "1.2.3", "1.2.3.4.5", "01.2.3.4", "1..2.3", "", "a.b.c.d",
		"[::]", "[::1]", "[fe80::1]", "[1:2:3:4:5:6:7:8]", "[1:2:3:4:5:6:7]", "[1:2:3:4:5:6:7:8:9]", "[1::2::3]",
		"[1:2:3:4:5:6:7::]", "[::2:3:4:5:6:7:8]", "[1:2:3:4::5:6:7:8]", "[12345::]", "[g::]",
		"[2001:db8::ff]", "[:]", "[]",
		"::1",
	} {
		want, err := netip.ParseAddr(strings.Trim(text, "[]"))
		bracketed := strings.HasPrefix(text, "[")
		if got := parseIP(text); (got != nil) != (err == nil && bracketed == want.Is6()) ||
			got != nil && !bytes.Equal(got, want.AsSlice()) {
			t.Errorf("%s: %v, want %v, %v", text, got, want, err)
		}
	}
}

func FuzzWords(f *testing.F) {
	f.Add("latch.key=ed25519:P7W-b7FGobDZs_B-_0huli6SrHTSeDAXdx2xFNQoDro latch.name=a latch.broker=tcp:1.2.3.4:5")
	f.Fuzz(func(t *testing.T, line string) {
		if w, err := ParseWords(line); err == nil && (!IsName(w.Name) || w.Key.smallOrder() || !HasWords(line)) {
			t.Errorf("%q is taken as %+v", line, w)
		}
	})
}
