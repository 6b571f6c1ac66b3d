package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// withHelper gives the guest a helper that is a shell script, a disk and a command line.
func (w *world) withHelper(script, line string) {
	w.t.Helper()
	w.write("helper", "#!/bin/sh\n"+script)
	w.helper = w.file("helper")
	if err := os.Chmod(w.helper, 0o700); err != nil {
		w.t.Fatal(err)
	}
	w.write("cmdline", line)
	w.write("disk.img", string(aVolume()))
	w.paths.run = filepath.Join(memory(w.t), "run")
}

const aPin = "0123456789abcdef0123456789abcdef"

const boots = "panic=-1 console=ttyS0 root=/dev/mapper/root "

// TestUnseal: what the helper prints opens the disk, by the header that the helper has seen.
func TestUnseal(t *testing.T) {
	w := newWorld(t)
	w.withHelper(`echo "$*" > `+w.file("asked")+`; printf 'value of the TPM'`, boots+"latch.tpm="+aPin)
	var key, header string
	w.crypt = func(name, _, volume string, k []byte) error {
		key, header = string(k), name
		if b, err := os.ReadFile(name); err != nil || len(b) == 0 || volume != "root" {
			t.Errorf("header %s: %d bytes, %v; volume %s", name, len(b), err, volume)
		}
		return nil
	}
	args := []string{"unseal", "--device", w.file("disk.img"), "--open", "root"}
	w.run(0, args...)
	if key != "value of the TPM" {
		t.Errorf("the key is %q", key)
	}
	if _, err := os.Stat(header); err == nil {
		t.Error("the header is left behind")
	}
	asked, _ := os.ReadFile(w.file("asked"))
	if want := "unseal --close --rewrite --header " + header + " --pin " + aPin + "\n"; string(asked) != want {
		t.Errorf("the helper is asked %q, want %q", asked, want)
	}
	w.write("cmdline", boots+"latch.tpm=unpinned")
	w.run(0, args...)
	if asked, _ := os.ReadFile(w.file("asked")); strings.Contains(string(asked), "--pin") {
		t.Errorf("unpinned: %q", asked)
	}
}

// TestUnsealNoWayIn: each failure powers off, and opens nothing.
func TestUnsealNoWayIn(t *testing.T) {
	good := `printf 'value of the TPM'`
	for name, c := range map[string]struct{ script, line, say string }{
		"the TPM refuses":      {"echo refused >&2; exit 4", boots + "latch.tpm=unpinned", "ended with code 4"},
		"a secret and a fault": {good + "; exit 4", boots + "latch.tpm=unpinned", "ended with code 4"},
		"the helper is killed": {good + "; kill -9 $$", boots + "latch.tpm=unpinned", "ended with code -1"},
		"a broker too":         {good, boots + "latch.tpm=unpinned latch.key=ed25519:AAAA", "and no broker"},
		"no pin":               {good, boots + "latch.tpm=", "needs latch.tpm=PIN"},
		"no word":              {good, boots, "needs latch.tpm=PIN"},
		"a shell":              {good, boots + "latch.tpm=unpinned init=/bin/sh", "could come in"},
		"another root":         {good, "panic=-1 root=/dev/vdb latch.tpm=unpinned", "could come in"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.withHelper(c.script, c.line)
			w.crypt = func(string, string, string, []byte) error { t.Error("the disk is opened"); return nil }
			if said := w.run(4, "unseal", "--device", w.file("disk.img"), "--open", "root"); !strings.Contains(
				said,
				c.say,
			) {
				t.Errorf("%s, want %s", said, c.say)
			}
		})
	}
	w := newWorld(t)
	w.withHelper(good, boots+"latch.tpm=unpinned")
	w.helper = w.file("none")
	w.run(4, "unseal", "--device", w.file("disk.img"), "--open", "root")
	w.run(4, "unseal", "--device", w.file("cmdline"), "--open", "root")
	w.run(2, "unseal", "--device", w.file("disk.img"), "--open", "root", "--secret", "x=/run/x")
	w.run(2, "unseal", "--device="+w.file("disk.img"))
	for line, want := range map[string]int{
		"latch.tpm=unpinned": 0, "latch.tpm=" + aPin: 0, "latch.tpm=": 4, "latch.tpm=zzz": 4,
		"latch.tpm=unpinned latch.key=ed25519:AAAA": 4,
	} {
		w.write("line", boots+line)
		w.run(want, "--check="+w.file("line"))
	}
}

// TestHelper: other commands are the helper's, with its exit codes, and turn nothing off.
func TestHelper(t *testing.T) {
	w := newWorld(t)
	w.withHelper(`[ "$*" = "quote --nonce 00" ] && exit 4`, "quiet")
	off := w.off
	if code := run(w.guest, []string{"quote", "--nonce", "00"}, os.Stdout); code != 4 || w.off != off {
		t.Errorf("code %d, power off %d times", code, w.off-off)
	}
	if code := run(w.guest, []string{"unseal", "file"}, os.Stdout); code != 1 {
		t.Errorf("code %d", code)
	}
}
