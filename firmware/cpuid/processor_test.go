package cpuid

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// TestSignature: families and models as their vendors count them.
func TestSignature(t *testing.T) {
	for a, want := range map[uint32][2]int{
		0x00a10f11: {0x19, 0x11}, // EPYC 9004, Genoa
		0x00800f12: {0x17, 0x01}, // EPYC 7001, Naples
		0x000806f8: {6, 0x8f},    // Sapphire Rapids
		0x00000543: {5, 4},       // Pentium MMX: no extensions
	} {
		if family, model := signature(a); family != want[0] || model != want[1] {
			t.Errorf("%#x: family %#x, model %#x, want %#x", a, family, model, want)
		}
	}
}

// TestMemory: an EPYC 9654, and processors without encrypted memory.
func TestMemory(t *testing.T) {
	got, ok := memory(0x0101fd3f, 0x00004173, 0x000003ee, 0x00000001)
	want := MemoryEncryption{
		SEV: true, SEVES: true, SNP: true, CBitPos: 51, ReducedBits: 5, MaxGuests: 1006, MinSEVASID: 1,
	}
	if !ok || got != want {
		t.Errorf("%+v, %t, want %+v", got, ok, want)
	}
	if got, ok := memory(0, 0x4173, 1, 1); ok || got != (MemoryEncryption{}) {
		t.Errorf("without either: %+v, %t", got, ok)
	}
}

// TestThisProcessor compares with what the kernel says of it.
func TestThisProcessor(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		if a, _, _, _ := Ask(0, 0); a != 0 {
			t.Error("a leaf of another architecture")
		}
		return
	}
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(b), "\n\n")
	kernel := map[string]string{}
	for line := range strings.Lines(first) {
		key, value, _ := strings.Cut(line, ":")
		kernel[strings.TrimSpace(key)] = strings.TrimSpace(value)
	}
	if strings.Contains(kernel["flags"], "hypervisor") && Name() != "" {
		// The kernel has read the name when it started; a virtual machine may have moved since.
		kernel["model name"] = Name()
	}
	family, model := Signature()
	for key, got := range map[string]string{
		"vendor_id": Vendor(), "model name": Name(), "cpu family": strconv.Itoa(family), "model": strconv.Itoa(model),
	} {
		if got != kernel[key] {
			t.Errorf("%s: %q, the kernel says %q", key, got, kernel[key])
		}
	}
	flags := " " + kernel["flags"] + " "
	if strings.Contains(flags, " tme ") && !TME() {
		t.Error("the kernel shows TME, and CPUID does not")
	}
	if shown := strings.Contains(flags, " vmx ") || strings.Contains(flags, " svm "); shown && !Virtualisation() {
		t.Error("the kernel shows virtualisation, and CPUID does not")
	}
	if m, ok := Memory(); !ok && m != (MemoryEncryption{}) {
		t.Errorf("no memory encryption, but %+v", m)
	}
}
