package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestConfig: what configures the first boot is handed on to where cloud-init and systemd look, for
// root alone, and a guest that cannot is switched off.
func TestConfig(t *testing.T) {
	dir := memory(t)
	w := newWorld(t)
	w.seed, w.credentials = dir+"/run/vmlatch/seed", dir+"/credentials"
	w.run(0, "config") // without one
	if exists(w.seed) || exists(w.credentials) || w.console.Len() > 0 {
		t.Errorf("without a configuration: %s", w.console.String())
	}
	w.write("vmlatch/seed/user-data", "#cloud-config\n")
	w.write("vmlatch/seed/meta-data", strings.Repeat("x", 1<<20))
	w.write("vmlatch/credentials/token", "a token")
	if said := w.run(0, "config"); !strings.Contains(said, "3 measured files") || strings.Contains(said, "token") {
		t.Errorf("it says %s", said)
	}
	for name, want := range map[string]int{
		w.seed + "/user-data": 14, w.seed + "/meta-data": 1 << 20, w.credentials + "/@initrd/token": 7,
	} {
		info, err := os.Stat(name)
		if err != nil || info.Size() != int64(want) || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v, want %d bytes", name, info, err, want)
		}
		if info, err := os.Stat(filepath.Dir(name)); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", filepath.Dir(name), info, err)
		}
	}
	if info, err := os.Stat(w.credentials); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("services cannot reach theirs: %v, %v", info, err)
	}
	// The host tells cloud-init what to do. A serial number alone is none of its words.
	for _, text := range []string{"ds=nocloud;s=http://host/", "x ds=nocloud;dsmode=disabled\n"} {
		w.write("serial", text)
		if said := w.run(4, "config"); w.off != 1 || !strings.Contains(said, "serial number") {
			t.Errorf("%q: off %d times: %s", text, w.off, said)
		}
		w.off = 0
	}
	w.write("serial", "4711\n")
	// Something else stands there already.
	if said := w.run(4, "config"); w.off != 1 || !strings.Contains(said, "file exists") {
		t.Errorf("off %d times: %s", w.off, said)
	}
}
