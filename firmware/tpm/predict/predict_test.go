package predict

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/authenticode/petest"
	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/internal/vectors"
	"github.com/vmlatch/vmlatch/firmware/uefivar"
)

const separatorOnly = "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969"

// firmware is one without Secure Boot, of which nothing is known.
func firmware() *Firmware {
	return &Firmware{
		Volumes:   [][]byte{[]byte("PEI"), []byte("DXE")},
		options:   stylePrefix,
		rawKernel: true,
		setup:     true,
	}
}

func value(t *testing.T, p *Prediction, pcr int) string {
	t.Helper()
	return hex.EncodeToString(p.PCRs[pcr].Values[eventlog.SHA256])
}

// TestUKI: sections are measured in the stub's order, whatever that of the file, and a phase is
// added to them.
func TestUKI(t *testing.T) {
	kernel := petest.Image(petest.Section{Name: ".text", Data: []byte("a kernel")})
	vectors.EachPCRs(t, func(t *testing.T, v *vectors.PCRs) {
		for _, x := range v.Small.UKI {
			list := []petest.Section{{Name: ".pcrsig", Data: []byte("is not measured")}}
			for _, s := range slices.Backward(x.Sections) {
				list = append(list, petest.Section{Name: s[0], Data: unhex(t, s[1])})
			}
			image := petest.Image(list...)
			sections, err := sectionsOf(image, &stub{})
			if err != nil {
				t.Fatal(err)
			}
			sum := make([]byte, 32)
			for _, s := range sections {
				sum = eventlog.SHA256.Extend(sum, eventlog.SHA256.Sum([]byte(s.name+"\x00")))
				sum = eventlog.SHA256.Extend(sum, eventlog.SHA256.Sum(s.data))
			}
			if hex.EncodeToString(sum) != x.PCR11 {
				t.Errorf("%x, want %s", sum, x.PCR11)
			}
		}
	})
	whole := &Inputs{
		Firmware: firmware(),
		UKI: petest.Image(
			petest.Section{Name: ".linux", Data: kernel},
			petest.Section{Name: ".cmdline", Data: []byte("quiet")},
			petest.Section{Name: ".sdmagic", Data: []byte(magic + "257.13 ####")},
		),
	}
	plain, err := Predict(whole)
	if err != nil {
		t.Fatal(err)
	}
	whole.Phase = "leave-initrd"
	later, err := Predict(whole)
	if err != nil {
		t.Fatal(err)
	}
	want := plain.PCRs[11].Values[eventlog.SHA256]
	for _, word := range []string{"enter-initrd", "leave-initrd"} {
		want = eventlog.SHA256.Extend(want, eventlog.SHA256.Sum([]byte(word)))
	}
	if got := value(t, later, 11); got != hex.EncodeToString(want) ||
		!strings.Contains(later.PCRs[11].Why, "leave-initrd") {
		t.Errorf("PCR 11 is %s (%s), want %x", got, later.PCRs[11].Why, want)
	}
	if n := len(plain.PCRs[4].Events); n != 4 {
		t.Errorf("PCR 4 has %d events, want that of the inner kernel too", n)
	}
	for pcr, c := range map[int]Certainty{1: Unknown, 5: Unknown, 9: Unknown, 7: Exact, 12: DependsOn} {
		if p := plain.PCRs[pcr]; p.Certainty != c || (p.Values == nil) != (c == Unknown) {
			t.Errorf("PCR %d: %s (%s), %d values, want %s", pcr, p.Certainty, p.Why, len(p.Values), c)
		}
	}
	whole.UKI = petest.Image(
		petest.Section{Name: ".linux", Data: kernel},
		petest.Section{Name: ".profile", Data: []byte("x")},
	)
	chosen, err := Predict(whole)
	if err != nil || chosen.PCRs[11].Certainty != Unknown || chosen.PCRs[4].Certainty != Unknown {
		t.Errorf("an image with profiles: %v, PCR 11 %s", err, chosen.PCRs[11].Certainty)
	}
}

// TestStubs: versions of systemd-stub measure different sections.
func TestStubs(t *testing.T) {
	kernel := petest.Code("a kernel")
	image := func(version string) []byte {
		return petest.Image(petest.Section{Name: ".sdmagic", Data: []byte(magic + version + " ####")},
			petest.Section{Name: ".sbat", Data: []byte("sbat")}, petest.Section{Name: ".linux", Data: kernel})
	}
	for version, want := range map[string]struct {
		c      Certainty
		events int
		why    string
	}{
		"252.39-1": {DependsOn, 2, "phase"}, "257.13": {DependsOn, 4, "phase"}, "255": {DependsOn, 4, "phase"},
		"259.1": {DependsOn, 4, "not tried"}, "253": {Unknown, 0, "not known"}, "249": {Unknown, 0, "not known"},
		"new": {Unknown, 0, "does not say"},
	} {
		p, err := Predict(&Inputs{Firmware: firmware(), UKI: image(version)})
		if err != nil {
			t.Fatal(err)
		}
		r := p.PCRs[11]
		if r.Certainty != want.c || len(r.Events) != want.events || !strings.Contains(r.Why, want.why) {
			t.Errorf(
				"systemd-stub %s: %s (%s), %d events, want %+v",
				version,
				r.Certainty,
				r.Why,
				len(r.Events),
				want,
			)
		}
	}
}

// TestCertainty: what is not known is never guessed.
func TestCertainty(t *testing.T) {
	kernel := vectors.PCRVectors(t).Small.Authenticode[2].Image
	initrd := &Initrd{1234567, map[eventlog.Bank][]byte{eventlog.SHA256: make([]byte, 32)}}
	for what, x := range map[string]struct {
		change func(in *Inputs)
		pcr    int
		want   Certainty
		why    string
	}{
		"firmware that was never seen":  {func(*Inputs) {}, 0, DependsOn, "is not known"},
		"a QEMU that is not known":      {func(*Inputs) {}, 4, DependsOn, "version 10"},
		"a new QEMU":                    {func(in *Inputs) { in.QEMU = 11 }, 4, Exact, ""},
		"an old QEMU and no memory":     {func(in *Inputs) { in.QEMU = 7 }, 4, Unknown, "memory"},
		"an old QEMU":                   {func(in *Inputs) { in.QEMU, in.Memory = 7, 1<<30 }, 4, Exact, ""},
		"an old QEMU, and vga=":         {func(in *Inputs) { in.QEMU, in.Cmdline = 7, "vga=1" }, 4, Unknown, ""},
		"an old QEMU without an initrd": {func(in *Inputs) { in.QEMU, in.Initrd = 7, nil }, 4, Exact, ""},
		"tables":                        {func(in *Inputs) { in.Firmware.measuresACPI = true }, 1, Unknown, "tables"},
		"tables that are cut off": {func(in *Inputs) {
			in.Firmware.measuresACPI, in.Tables = true, Tables{fileLoader: make([]byte, 127)}
		}, 1, Unknown, "cut off"},
		"no tables are measured":      {func(*Inputs) {}, 1, Exact, ""},
		"boot options not known":      {func(in *Inputs) { in.Firmware.setup = false }, 1, Unknown, "boot options"},
		"an unknown place of initrd=": {func(in *Inputs) { in.Firmware.options = styleUnknown }, 9, Unknown, "initrd="},
		"option ROMs":                 {func(*Inputs) {}, 2, DependsOn, "option ROM"},
		"Secure Boot without a db":    {secure(nil), 7, Unknown, "db"},
		"Secure Boot, not signed":     {secure([]byte{}), 7, Unknown, "no signature"},
		"Secure Boot, a damaged db":   {secure([]byte("x")), 7, Unknown, "cut off"},
		"boot options in the variables": {func(in *Inputs) {
			in.Variables = uefivar.Store{{GUID: uefivar.GUIDGlobal, Name: "Boot0000", Data: []byte("x")}}
		}, 1, Unknown, "boot options already"},
		"those of the firmware": {func(in *Inputs) {
			order := in.Firmware.bootOptions()
			in.Variables = uefivar.Store{
				{GUID: uefivar.GUIDGlobal, Name: "BootOrder", Data: order[0]},
				{GUID: uefivar.GUIDGlobal, Name: "Boot0001", Data: order[2]},
			}
		}, 1, Exact, ""},
		"a unified kernel image as a kernel": {func(in *Inputs) {
			in.Kernel, in.QEMU = append(bytes.Clone(in.Kernel), magic+"257.9"...), 11
		}, 11, Unknown, "unified kernel image"},
		"Secure Boot that was switched off": {func(in *Inputs) {
			in.Firmware.SecureBoot, in.QEMU = true, 11
			in.Variables = uefivar.Store{
				{GUID: uefivar.GUIDGlobal, Name: "PK", Data: []byte("key")},
				{GUID: uefivar.GUIDSecureBootEnable, Name: "SecureBootEnable", Data: []byte{0}},
			}
		}, 7, Exact, ""},
		"a broken signature": {func(in *Inputs) {
			in.Firmware.SecureBoot, in.QEMU, in.Memory = true, 7, 1<<30
			in.Variables = uefivar.Store{{GUID: uefivar.GUIDGlobal, Name: "PK", Data: []byte("key")}}
		}, 9, Unknown, "breaks its signature"},
		"IMA of unknown registers": {func(in *Inputs) { in.Firmware.setup = false }, 10, Unknown, "aggregate"},
		"an aggregate":             {func(*Inputs) {}, 10, DependsOn, "IMA"},
	} {
		in := &Inputs{Firmware: firmware(), Kernel: kernel, Initrd: initrd, Cmdline: "quiet"}
		x.change(in)
		p, err := Predict(in)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		r := p.PCRs[x.pcr]
		if r.Certainty != x.want || !strings.Contains(r.Why, x.why) || (r.Values == nil) != (x.want == Unknown) {
			t.Errorf(
				"%s: PCR %d is %s (%s), %v; want %s (%s)",
				what,
				x.pcr,
				r.Certainty,
				r.Why,
				r.Values,
				x.want,
				x.why,
			)
		}
	}
	for what, in := range map[string]*Inputs{
		"nothing":           {},
		"no code":           {Firmware: firmware()},
		"two":               {Firmware: firmware(), Kernel: kernel, UKI: kernel},
		"a UKI and options": {Firmware: firmware(), UKI: kernel, Cmdline: "x"},
		"no PE image":       {Firmware: firmware(), Kernel: []byte("x")},
		"no UKI":            {Firmware: firmware(), UKI: petest.Code("x")},
		"an unknown phase": {
			Firmware: firmware(), UKI: petest.Image(petest.Section{Name: ".linux", Data: kernel}), Phase: "later",
		},
		"no digest of the initrd": {
			Firmware: firmware(), Kernel: kernel, Initrd: initrd, Banks: []eventlog.Bank{eventlog.SHA384},
		},
	} {
		if _, err := Predict(in); !errors.Is(err, ErrInputs) {
			t.Errorf("%s: %v, want ErrInputs", what, err)
		}
	}
}

// secure switches Secure Boot on, with a db; nil for none.
func secure(db []byte) func(in *Inputs) {
	return func(in *Inputs) {
		in.Firmware.SecureBoot, in.Kernel = true, petest.Image(petest.Section{Name: ".text", Data: []byte("x")})
		in.Variables = uefivar.Store{{GUID: uefivar.GUIDGlobal, Name: "PK", Data: []byte("key")}}
		if db != nil {
			in.Variables = append(in.Variables, uefivar.Variable{GUID: uefivar.GUIDImageSecurity, Name: "db", Data: db})
		}
	}
}

// TestPCR7: two values are constants, which everybody knows.
func TestPCR7(t *testing.T) {
	kernel := vectors.PCRVectors(t).Small.Authenticode[0].Image
	for on, want := range map[bool]string{
		false: "b5710bf57d25623e4019027da116821fa99f5c81e9e38b87671cc574f9281439",
		true:  "65caf8dd1e0ea7a6347b635d2b379c93b9a1351edc2afc3ecda700e534eb3068",
	} {
		f := firmware()
		f.SecureBoot = on
		p, err := Predict(&Inputs{Firmware: f, Kernel: kernel})
		if err != nil {
			t.Fatal(err)
		}
		if got := value(t, p, 7); got != want || p.PCRs[7].Certainty != Exact {
			t.Errorf("with the code of Secure Boot %t: %s, want %s", on, got, want)
		}
		for _, pcr := range []int{2, 3, 6} {
			if got := value(t, p, pcr); got != separatorOnly {
				t.Errorf("PCR %d is %s, want %s", pcr, got, separatorOnly)
			}
		}
		for _, pcr := range []int{8, 11, 12, 13, 14} {
			if got := value(t, p, pcr); got != strings.Repeat("0", 64) {
				t.Errorf("PCR %d is %s, want zeros", pcr, got)
			}
		}
	}
}

func TestIMA(t *testing.T) {
	vectors.EachPCRs(t, func(t *testing.T, v *vectors.PCRs) {
		for _, x := range v.Small.IMA {
			var all []byte
			for i := range 10 {
				all = append(all, unhex(t, x.PCRs[fmt.Sprint(i)])...)
			}
			data := aggregate(eventlog.SHA256.Sum(all), x.Template == "ima-sig")
			got := eventlog.SHA256.Extend(make([]byte, 32), imaDigest(eventlog.SHA256, data))
			if hex.EncodeToString(got) != x.PCR10 {
				t.Errorf("%s: %x, want %s", x.Template, got, x.PCR10)
			}
		}
	})
}

func TestGPT(t *testing.T) {
	vectors.EachPCRs(t, func(t *testing.T, v *vectors.PCRs) {
		x := v.Small.GPT
		disk := make([]byte, 64*512)
		copy(disk[512:], unhex(t, x.Header))
		for i, e := range x.Entries {
			copy(disk[1024+256*i:], unhex(t, e)) // every second one is used
		}
		got, err := GPT(bytes.NewReader(disk))
		if err != nil || hex.EncodeToString(got) != x.Event {
			t.Errorf("%x, %v, want %s", got, err, x.Event)
		}
		for what, change := range map[string]func(b []byte) []byte{
			"cut off":          func(b []byte) []byte { return b[:700] },
			"entries missing":  func(b []byte) []byte { return b[:2048] },
			"a changed header": func(b []byte) []byte { b[512+40] ^= 1; return b },
			"no table":         func(b []byte) []byte { clear(b); return b },
			"entries far away": func(b []byte) []byte {
				binary.LittleEndian.PutUint64(b[512+72:], 1<<40)
				h := b[512 : 512+92]
				clear(h[16:20])
				binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h))
				return b
			},
		} {
			if _, err := GPT(bytes.NewReader(change(bytes.Clone(disk)))); !errors.Is(err, ErrInputs) {
				t.Errorf("%s: %v, want ErrInputs", what, err)
			}
		}
	})
}

// TestBanks: all banks are predicted alike.
func TestBanks(t *testing.T) {
	kernel := vectors.PCRVectors(t).Small.Authenticode[0].Image
	banks := []eventlog.Bank{eventlog.SHA1, eventlog.SHA256, eventlog.SHA384, eventlog.SHA512}
	p, err := Predict(&Inputs{Firmware: firmware(), Kernel: kernel, Banks: banks})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range banks {
		want := b.Extend(make([]byte, b.Hash().Size()), b.Sum([]byte{0, 0, 0, 0}))
		if got := p.PCRs[3].Values[b]; !bytes.Equal(got, want) {
			t.Errorf("%v: PCR 3 is %x, want %x", b, got, want)
		}
	}
	if got := slices.Sorted(maps.Keys(p.PCRs[4].Values)); len(got) != len(banks) {
		t.Errorf("PCR 4 has the banks %v", got)
	}
}

func FuzzTables(f *testing.F) {
	x := vectors.PCRVectors(f).Small.SMBIOS
	f.Add(unhex(f, x.Tables), make([]byte, 128))
	f.Fuzz(func(_ *testing.T, smbios, loader []byte) {
		t := Tables{fileSMBIOS: smbios, fileLoader: loader}
		_, _ = t.smbios("vendor", "version", "date")
		_, _ = t.acpi()
	})
}

func FuzzImages(f *testing.F) {
	f.Add(petest.Image(petest.Section{Name: ".linux", Data: []byte("x")}), []byte("db"))
	f.Fuzz(func(_ *testing.T, image, db []byte) {
		_, _ = sectionsOf(image, nil)
		_, _ = stubOf(image)
		_, _ = authority(&uefivar.Variable{Data: db}, image)
	})
}

func FuzzFirmware(f *testing.F) {
	f.Add([]byte("_FVH"))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = ReadFirmware(b) })
}
