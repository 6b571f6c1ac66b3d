package ffs

import (
	"encoding/binary"
	"testing"
)

// TestFindIsLinear: bytes that are headers everywhere take no longer than others.
func TestFindIsLinear(t *testing.T) {
	b := make([]byte, 4<<20)
	for off := 0; off+64 <= len(b); off += 64 {
		binary.LittleEndian.PutUint64(b[off+32:], 65534)
		copy(b[off+40:], "_FVH")
		binary.LittleEndian.PutUint16(b[off+48:], 65534)
		b[off] = byte(off >> 6) // and no sum is right
	}
	long := 8 * len(b)
	if sums(b[:65534], &long); long != 8*len(b)-65534 {
		t.Errorf("a long header takes %d of the budget", 8*len(b)-long)
	}
	for range 8 * len(b) / 65534 {
		sums(b[:65534], &long)
	}
	if right := make([]byte, 65534); sums(right, &long) || !sums(right[:shortHeader], &long) {
		t.Error("long headers are added up without end, or short ones no more")
	}
	if found := Find(b); found != nil {
		t.Errorf("found %+v", found)
	}
}
