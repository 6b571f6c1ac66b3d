package ovmftest

import "encoding/binary"

// Kernel is a bzImage that does nothing, with a header that QEMU takes for Linux's (boot
// protocol 2.15, command lines of up to 2047 bytes).
func Kernel() []byte {
	const setup, code = 2 * 512, 16 << 10
	b := make([]byte, setup+code)
	le := binary.LittleEndian
	b[0x1f1] = 1 // sectors of setup code
	le.PutUint32(b[0x1f4:], code/16)
	le.PutUint16(b[0x1fe:], 0xaa55)
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x20f)
	b[0x211] = 1 // the code is loaded high
	le.PutUint32(b[0x238:], 2047)
	for i := setup; i < len(b); i++ {
		b[i] = 0xf4 // hlt
	}
	return b
}
