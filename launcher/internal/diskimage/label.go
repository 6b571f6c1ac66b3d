package diskimage

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// labels are where file systems have their labels: FAT12 and FAT16, FAT32 (Microsoft, FAT32 File
// System Specification), ISO 9660 (ECMA-119, section 8.4).
var labels = []struct {
	at   int64
	size int
}{{0x2b, 11}, {0x47, 11}, {0x8028, 32}}

// IsSeed reports whether a raw image is labelled as a seed for cloud-init.
func IsSeed(name string) bool {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	for _, l := range labels {
		b := make([]byte, l.size)
		if _, err := f.ReadAt(b, l.at); err == nil &&
			strings.EqualFold(strings.TrimRight(string(b), " \x00"), "cidata") {
			return true
		}
	}
	return false
}
