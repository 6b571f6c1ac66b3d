package report

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha512"
	"encoding/binary"
	"math/big"
	"slices"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
)

// Bytes is the report as firmware writes it, without a signature: the reverse of Parse, for
// emulators and tests. Fields that its version does not have must be zero.
func (r *Report) Bytes() []byte {
	b := make([]byte, Size)
	le := binary.LittleEndian
	for off, v := range map[int]uint32{
		offVersion: r.Version, offGuestSVN: r.GuestSVN, offVMPL: r.VMPL, offAlgorithm: r.Algorithm,
		offSigner: r.SignerInfo,
	} {
		le.PutUint32(b[off:], v)
	}
	for off, v := range map[int]uint64{
		offPolicy: uint64(r.Policy), offCurrent: r.CurrentTCB, offPlatform: uint64(r.Platform),
		offReported: r.ReportedTCB, offCommitted: r.CommittedTCB, offLaunch: r.LaunchTCB,
		offLaunchMit: r.LaunchMit, offCurrentMit: r.CurrentMit,
	} {
		le.PutUint64(b[off:], v)
	}
	b[offCPUID], b[offCPUID+1], b[offCPUID+2] = r.Family, r.Model, r.Stepping
	for off, v := range map[int]sev.Build{offBuild: r.Current, offCommittedB: r.Committed} {
		b[off], b[off+1], b[off+2] = v.Build, v.Minor, v.Major
	}
	for off, from := range r.arrays() {
		copy(b[off:], from)
	}
	return b
}

// arrays are the fields that are bytes, by offset.
func (r *Report) arrays() map[int][]byte {
	return map[int][]byte{
		offFamilyID: r.FamilyID[:], offImageID: r.ImageID[:], offReportData: r.ReportData[:],
		offMeasurement: r.Measurement[:], offHostData: r.HostData[:], offIDKey: r.IDKeyDigest[:],
		offAuthorKey: r.AuthorKey[:], offReportID: r.ReportID[:], offReportIDMA: r.ReportIDMA[:],
		offChipID: r.ChipID[:],
	}
}

// Sign signs a report's bytes in place. The key is ECDSA P-384.
func Sign(b []byte, key *ecdsa.PrivateKey) error {
	sum := sha512.Sum384(b[:offSignature])
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		return err
	}
	for off, n := range map[int]*big.Int{offSignature: r, offS: s} {
		number := n.FillBytes(make([]byte, 48))
		slices.Reverse(number)
		copy(b[off:], number)
	}
	return nil
}

// SignerInfo is the word of a report that says which key signed it, and what it keeps back.
func SignerInfo(signer kds.Signer, authorKey, masked bool) uint32 {
	info := uint32(signer) << signerKeyShift
	for bit, set := range map[uint32]bool{signerAuthorKey: authorKey, signerMaskChip: masked} {
		if set {
			info |= bit
		}
	}
	return info
}
