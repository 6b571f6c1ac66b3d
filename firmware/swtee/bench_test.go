package swtee

import "testing"

// BenchmarkOpenPlatform is what every start of an emulated platform begins with.
func BenchmarkOpenPlatform(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		if _, err := OpenPlatform(dir); err != nil {
			b.Fatal(err)
		}
	}
}
