package session

import (
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/sev"
)

// HeaderSize is the length of a packet's header: flags 4, IV 16, MAC 32
// (SEV API, chapter 6.6, table 61).
const HeaderSize = 52

// MaxSecret is the largest packet that LAUNCH_SECRET takes (SEV API, chapter 6.6).
const MaxSecret = 16 << 10

const flagCompressed = 1

// Errors that Open tells apart.
var (
	ErrPacketMAC  = errors.New("secret packet: not made with this session's keys for this measurement")
	ErrCompressed = errors.New("secret packet: compressed packets are not supported")
)

// Packet is a secret on its way into the guest.
type Packet struct {
	Header [HeaderSize]byte
	Data   []byte // encrypted, as long as the plaintext
}

// Seal encrypts a secret for the launch that gave the measurement. iv must
// never be used twice with the same keys.
func (k *Keys) Seal(plain []byte, iv [16]byte, m sev.Measurement) (Packet, error) {
	var p Packet
	if len(plain) == 0 || len(plain) > MaxSecret || len(plain)%16 != 0 {
		return p, fmt.Errorf("secret packet: %d bytes, must be a multiple of 16 up to %d", len(plain), MaxSecret)
	}
	copy(p.Header[4:], iv[:])
	p.Data = make([]byte, len(plain))
	ctr(k.TEK[:], iv[:], plain, p.Data)
	copy(p.Header[20:], k.packetMAC(&p, len(plain), m))
	return p, nil
}

// Open is the platform's side of Seal. guestLen is the length of the area in
// guest memory that the plaintext fills.
func (k *Keys) Open(p Packet, guestLen int, m sev.Measurement) ([]byte, error) {
	if !hmac.Equal(k.packetMAC(&p, guestLen, m), p.Header[20:]) {
		return nil, ErrPacketMAC
	}
	if p.Header[0]&flagCompressed != 0 {
		return nil, ErrCompressed
	}
	plain := make([]byte, len(p.Data))
	ctr(k.TEK[:], p.Header[4:20], p.Data, plain)
	return plain, nil
}

// packetMAC covers 0x01, flags, IV, both lengths, the data and the launch
// measurement's MAC (SEV API, chapter 6.6.2).
func (k *Keys) packetMAC(p *Packet, guestLen int, m sev.Measurement) []byte {
	le := binary.LittleEndian
	return mac(k.TIK[:], []byte{1}, p.Header[:4], p.Header[4:20],
		le.AppendUint32(nil, uint32(guestLen)), le.AppendUint32(nil, uint32(len(p.Data))), p.Data, m.MAC[:])
}
