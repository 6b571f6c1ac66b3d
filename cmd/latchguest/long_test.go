//go:build !quick

package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
)

// TestNoWayIn: each failure powers off, and says what to do.
func TestNoWayIn(t *testing.T) {
	base := func(w *world) string {
		return "latch.name=appliance latch.broker=port latch.key=" + w.broker.Key.String()
	}
	cmdline := func(line string) func(*world) { return func(w *world) { w.write("cmdline", line) } }
	onto := func(before, after string) func(*world) {
		return func(w *world) { w.write("cmdline", before+base(w)+after) }
	}
	for name, c := range map[string]struct {
		change func(*world)
		say    string
	}{
		"denied":            {func(w *world) { w.deny("measurement", false) }, "hint: what was launched"},
		"denied by code":    {func(w *world) { w.deny("something-new", false) }, "the owner's log says more"},
		"always busy":       {func(w *world) { w.deny("busy", true) }, "no secret in time"},
		"never approved":    {func(w *world) { w.pend() }, "the owner has not approved request 7"},
		"no evidence":       {func(w *world) { w.platform.err = errors.New("empty") }, "no secret in time: empty"},
		"a broken chip":     {func(w *world) { w.platform.err = &finalError{errors.New("broken")} }, "broken"},
		"no broker":         {func(w *world) { w.dial = nil }, "cannot be reached by port"},
		"a shell":           {onto("", ""), "a person at the console could come in: a shell opens"},
		"another init":      {onto("panic=-1 init=/bin/sh ", ""), "init=/bin/sh"},
		"no key":            {cmdline("panic=-1 latch.name=a latch.broker=port"), "latch.key is missing"},
		"a doubled word":    {onto("panic=-1 latch.name=b ", ""), "stands there twice"},
		"an unknown word":   {onto("panic=-1 latch.x=b ", ""), "latch.x is unknown"},
		"a long line":       {onto("panic=-1 ", strings.Repeat(" x", 1024)), "cuts it off"},
		"no injection":      {onto("panic=-1 latch.source=injected ", ""), "no secret was injected"},
		"open RTMR3":        {func(w *world) { w.platform.kind = exchange.TDX }, "cannot extend RTMR3"},
		"opened by another": {func(w *world) { w.write("mapper/root", "") }, "has not opened it"},
		"other secrets": {func(w *world) {
			w.answer = func(s *exchange.Shown) []byte {
				line, _, _ := w.broker.Release(s, map[string]exchange.Secret{"x": {Value: []byte("y")}})
				return line
			}
		}, "not the secrets that were asked for"},
		"no disk":       {func(w *world) { w.luks("unchecked") }, "the disk is missing"},
		"raw for disks": {func(w *world) { w.write("disk.img", "x") }, "is not for a disk"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			c.change(w)
			args := []string{"--secret", "disk", "--device", w.file("disk.img"), "--open", "root", "--timeout", "30s"}
			w.crypt = func(string, string, string, []byte) error {
				t.Error("a disk was opened")
				return nil
			}
			said := w.run(4, args...)
			if !strings.Contains(said, c.say) || !strings.Contains(said, "powers off") {
				t.Errorf("it says %q, want %q", said, c.say)
			}
		})
	}
}

// TestTrustsHost: a guest whose command line says that it trusts its host proves itself by the TPM,
// and closes the launch before it hands a secret on; no other guest asks the TPM.
func TestTrustsHost(t *testing.T) {
	const attests = `echo "$1" >> "$0.asked"; case $1 in attest) printf %s "$2";; close) exit ${CLOSED:-0};; esac`
	start := func(t *testing.T, script, words string) (*world, string) {
		w := newWorld(t)
		w.tsm = nil
		w.write("tpm", "")
		w.withHelper(script, "panic=-1 console=ttyS0 latch.name=appliance latch.broker=port latch.key="+
			w.broker.Key.String()+words)
		return w, filepath.Join(memory(t), "out")
	}
	w, out := start(t, attests, " latch.trust=host")
	w.run(0, "--secret", "token="+out)
	if b, err := os.ReadFile(out); err != nil || string(b) != "value of token" {
		t.Errorf("%q, %v", b, err)
	}
	if asked, _ := os.ReadFile(w.file("helper.asked")); string(asked) != "attest\nclose\n" {
		t.Errorf("the helper was asked %q", asked)
	}
	t.Run("a confidential guest", func(t *testing.T) {
		w, out := start(t, attests, " latch.trust=host")
		w.write("sev-guest", "")
		if said := w.run(4, "--secret", "token="+out); !strings.Contains(said, "does not take its host's word") {
			t.Error(said)
		}
		if asked, err := os.ReadFile(w.file("helper.asked")); err == nil {
			t.Errorf("the helper was asked %q", asked)
		}
	})
	t.Run("no TPM", func(t *testing.T) {
		w, out := start(t, attests, " latch.trust=host")
		if err := os.Remove(w.file("tpm")); err != nil {
			t.Fatal(err)
		}
		if said := w.run(4, "--secret", "token="+out); !strings.Contains(said, "no such file") {
			t.Error(said)
		}
	})
	for name, c := range map[string]struct{ script, words, say string }{
		"the TPM fails":          {"exit 1", " latch.trust=host", "ended with code 1"},
		"a quote and a fault":    {attests + "; exit 4", " latch.trust=host", "ended with code 4"},
		"it prints too much":     {`head -c 300000 /dev/zero`, " latch.trust=host", "ended with code"},
		"it cannot be closed":    {strings.Replace(attests, ":-0", ":-3", 1), " latch.trust=host", "cannot be closed"},
		"the word is missing":    {attests, "", "gives no evidence"},
		"another word":           {attests, " latch.trust=all", "latch.trust must be host"},
		"it was injected anyhow": {attests, " latch.trust=host latch.source=injected", "one of them"},
	} {
		t.Run(name, func(t *testing.T) {
			w, out := start(t, c.script, c.words)
			if said := w.run(4, "--secret", "token="+out); !strings.Contains(said, c.say) {
				t.Errorf("%s, want %s", said, c.say)
			}
			if _, err := os.Stat(out); err == nil {
				t.Error("the secret is written")
			}
		})
	}
}
