package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/sev/table"
)

// TestInjected: secrets in memory count only if the pinned broker has signed them, all of them.
func TestInjected(t *testing.T) {
	dir := memory(t)
	w := newWorld(t)
	line := "panic=-1 latch.name=appliance latch.source=injected latch.key=" + w.broker.Key.String()
	w.write("cmdline", line)
	values := map[string]exchange.Secret{
		"disk": {Value: []byte("value of disk")},
		"api":  {Value: []byte("value of api")},
	}
	place := func(values map[string]exchange.Secret, envelope []byte) {
		_ = os.RemoveAll(w.coco)
		for n, v := range values {
			w.write("coco/"+table.Named(n).String(), string(v.Value))
		}
		if envelope != nil {
			w.write("coco/"+table.GUIDInjected.String(), string(envelope))
		}
	}
	place(values, w.broker.Inject("appliance", values))
	w.run(0, "--secret", "disk="+dir+"/one")
	if b, err := os.ReadFile(dir + "/one"); err != nil || string(b) != "value of disk" {
		t.Errorf("%q, %v", b, err)
	}
	if left := list(w.coco); len(left) > 2 { // . and ..
		t.Errorf("the secrets stay where others find them: %v", left)
	}
	other, err := exchange.NewBroker(ed25519.NewKeyFromSeed(make([]byte, 32)), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	hosts := map[string]exchange.Secret{"disk": {Value: []byte("of the host's")}}
	disk, api := map[string]exchange.Secret{"disk": values["disk"]}, map[string]exchange.Secret{"api": values["api"]}
	for name, c := range map[string]struct {
		values   map[string]exchange.Secret
		envelope []byte
	}{
		"without an envelope":        {values, nil},
		"the host's own":             {hosts, other.Inject("appliance", hosts)},
		"the host's in the envelope": {hosts, w.broker.Inject("appliance", values)},
		"one is missing":             {disk, w.broker.Inject("appliance", values)},
		"of another guest":           {values, w.broker.Inject("other", values)},
		"not asked for":              {api, w.broker.Inject("appliance", api)},
	} {
		place(c.values, c.envelope)
		said := w.run(4, "--secret", "disk="+dir+"/"+strings.ReplaceAll(name, " ", "-"))
		if !strings.Contains(said, "inject") {
			t.Errorf("%s: %s", name, said)
		}
	}

	// Without securityfs they lie in memory, where the command line says.
	_ = os.RemoveAll(w.coco)
	packed, err := table.Pack([]table.Entry{
		{GUID: table.Named("disk"), Data: []byte("value of disk")},
		{
			GUID: table.GUIDInjected,
			Data: w.broker.Inject("appliance", map[string]exchange.Secret{"disk": values["disk"]}),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.write("mem", strings.Repeat("\x00", 64)+string(packed)+strings.Repeat("\x00", 4096))
	w.write("cmdline", line+" vmlatch.secret=0x40+0x400")
	w.run(0, "--secret", "disk="+dir+"/memory")
	for _, area := range []string{"0x41+0x400", "64", "x+y", "0x40+0", "0x40+0x100000", "0x4000000+0x400"} {
		w.write("cmdline", line+" vmlatch.secret="+area)
		w.run(4, "--secret", "disk="+dir+"/area")
	}
}

// aVolume is a volume of LUKS1 whose header ends at sector 40.
func aVolume() []byte {
	volume := make([]byte, 64<<10)
	copy(volume, "LUKS\xba\xbe\x00\x01")
	volume[104+3] = 40
	return volume
}

// TestDisk: the disk opens by a copy of the header that the owner knows, and by no other.
func TestDisk(t *testing.T) {
	w := newWorld(t)
	w.paths.run = filepath.Join(memory(t), "run")
	volume := aVolume()
	w.write("disk.img", string(volume))
	var opened []string
	w.crypt = func(header, device, volume string, key []byte) error {
		b, err := os.ReadFile(header)
		if err != nil || len(b) != 40*512 || string(key) != "key" || volume != "root" {
			t.Errorf("opened by %d bytes of header, %v", len(b), err)
		}
		opened = append(opened, device)
		return nil
	}
	args := []string{"--secret", "disk", "--device", w.file("disk.img"), "--open", "root"}
	w.luks(strings.Repeat("0", 64))
	said := w.run(4, args...)
	i := strings.Index(said, "its SHA-256 is ")
	if i < 0 || len(opened) > 0 {
		t.Fatalf("with another header: %s", said)
	}
	w.luks(said[i+15:][:64])
	w.run(0, args...)
	if len(opened) != 1 {
		t.Errorf("opened %v, want the disk", opened)
	}
	volume[200] ^= 1
	w.write("disk.img", string(volume))
	w.run(4, args...)
	if exists(w.paths.run + "/header") {
		t.Error("a header is left behind")
	}
	w.write("disk.img", "no LUKS")
	w.run(4, args...)
	if len(opened) != 1 {
		t.Error("another disk was opened")
	}
}
