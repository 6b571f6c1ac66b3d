package bytesize_test

import (
	"math"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/bytesize"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]bytesize.Size{
		"1KiB": 1 << 10, "512MiB": 512 << 20, "4GiB": 4 << 30, "2TiB": 2 << 40, "0GiB": 0,
		" 1KiB ": 1 << 10, "1 KiB": 1 << 10, "007KiB": 7 << 10,
		"16777215TiB": 16777215 << 40, "18014398509481983KiB": math.MaxUint64 &^ 1023,
	} {
		if got, err := bytesize.Parse(text); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", text, got, err, want)
		}
	}
}

func TestSizesThatAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		"": "whole number and a unit", "GiB": "whole number", "x": "whole number", "1.5GiB": "whole number",
		"-1GiB": "whole number", "+1GiB": "whole number", "0x10MiB": "whole number", "1GiB2": "whole number",
		"1_000KiB": "whole number", "18446744073709551616KiB": "whole number", "1PiB": "whole number",
		"512": "has no unit; write 512MiB or 512GiB", "0": "has no unit",
		"4G": `unit "G" could mean two things; write 4GiB`, "4g": "write 4GiB", "4GB": "write 4GiB",
		"4gib": "write 4GiB", "4 K": "write 4KiB", "5MB": "write 5MiB", "1t": "write 1TiB",
		"16777216TiB": "too large", "18014398509481984KiB": "too large",
	} {
		got, err := bytesize.Parse(text)
		if err == nil || got != 0 || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "size ") {
			t.Errorf("%q: %d, %v, want 0 and an error with %q", text, got, err, want)
		}
	}
}

// TestSizesAreWrittenAsTheyAreRead: in the largest unit that divides them.
func TestSizesAreWrittenAsTheyAreRead(t *testing.T) {
	for size, want := range map[bytesize.Size]string{
		1 << 10: "1KiB", 1023 << 10: "1023KiB", 1 << 20: "1MiB", 512 << 20: "512MiB", 1536 << 20: "1536MiB",
		4 << 30: "4GiB", 1 << 40: "1TiB", 1<<40 + 1<<10: "1073741825KiB",
	} {
		text, err := size.MarshalText()
		if err != nil || string(text) != want || size.String() != want {
			t.Errorf("%d bytes: %q, %v and %q, want %q", uint64(size), text, err, size, want)
		}
		var again bytesize.Size
		if err := again.UnmarshalText(text); err != nil || again != size {
			t.Errorf("%s: read as %d, %v, want %d", text, uint64(again), err, uint64(size))
		}
	}
	for size, want := range map[bytesize.Size]string{0: "0B", 5: "5B", 1025: "1025B"} { // which a spec cannot have
		if got := size.String(); got != want {
			t.Errorf("%d bytes: %q, want %q", uint64(size), got, want)
		}
	}
}

func TestSizeInMiB(t *testing.T) {
	for size, want := range map[bytesize.Size]uint64{0: 0, 1<<20 - 1: 0, 1 << 20: 1, 4 << 30: 4096} {
		if got := size.MiB(); got != want {
			t.Errorf("%v: %d MiB, want %d", size, got, want)
		}
	}
}
