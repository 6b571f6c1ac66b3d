package main

import (
	"os"
	"strings"
	"testing"
)

// TestDoors: what an initrd would do after a failure depends on who made it, and a word for another
// maker closes nothing.
func TestDoors(t *testing.T) {
	const root = "root=/dev/mapper/root "
	const dracut, panics = root + "rd.shell=0 rd.emergency=poweroff ", root + "panic=-1 "
	mask := func(w *world, units ...string) {
		w.write("systemd", "")
		for _, u := range units {
			if err := os.MkdirAll(w.file("units"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("/dev/null", w.file("units/"+u)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		initrd func(*world)
		words  string
		say    string // "" for a closed one
	}{
		"initramfs-tools":           {func(w *world) { w.write("scripts", "") }, panics, ""},
		"initramfs-tools, no panic": {func(w *world) { w.write("scripts", "") }, dracut, "a shell opens"},
		"dracut":                    {func(w *world) { w.write("dracut", "") }, dracut, ""},
		"dracut, panic alone":       {func(w *world) { w.write("dracut", "") }, panics, "rd.shell=0"},
		"dracut with systemd": {func(w *world) {
			w.write("dracut", "")
			w.write("systemd", "")
		}, dracut, ""},
		"systemd":                 {func(w *world) { mask(w, masked...) }, root, ""},
		"systemd, nothing masked": {func(w *world) { mask(w) }, panics + dracut, "emergency.service is not masked"},
		"systemd, half of it":     {func(w *world) { mask(w, masked[:3]...) }, panics, "ask-password-console.path"},
		"systemd, masked by words": {
			func(w *world) { mask(w, masked[1:]...) }, root + "rd.systemd.mask=emergency.service", "",
		},
		"systemd, not a mask": {func(w *world) {
			mask(w, masked[1:]...)
			w.write("units/emergency.service", "[Service]")
		}, "", "emergency.service is not masked"},
		"the root file system":   {func(*world) {}, panics, ""},
		"without one":            {func(*world) {}, "panic=-1", ""},
		"systemd looks for one":  {func(w *world) { mask(w, masked...) }, "", "root=/dev/mapper/root is missing"},
		"another volume":         {func(*world) {}, panics + "root=/dev/mapper/other", "is not the volume"},
		"a disk of the host's":   {func(*world) {}, panics + "root=/dev/vdb", "any disk of the host's"},
		"a UUID":                 {func(*world) {}, panics + "root=UUID=0815", "any disk of the host's"},
		"a system from the disk": {func(*world) {}, panics + "resume=/dev/vdb", "noresume"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c.initrd(w)
			w.write("line", c.words+" latch.name=a latch.broker=port latch.key="+w.broker.Key.String())
			want := 0
			if c.say != "" {
				want = 4
			}
			w.console.Reset()
			if code := run(w.guest, []string{"--check=" + w.file("line"), "--open", "root"}, nil); code != want ||
				!strings.Contains(w.console.String(), c.say) {
				t.Errorf("code %d, %s; want %d and %q", code, w.console.String(), want, c.say)
			}
			if w.off > 0 {
				t.Error("a check turns the power off")
			}
		})
	}
}
