package tpm

import (
	"crypto/sha256"

	"github.com/google/go-tpm/tpm2"
)

// HandleSRK is where a storage root key is kept (TCG TPM v2.0 Provisioning Guidance, section 7.8).
const HandleSRK tpm2.TPMHandle = 0x81000001

// SRKTemplate describes a storage root key on P-256, as Linux distributions make it (TCG TPM v2.0
// Provisioning Guidance, section 7.5.1; TPM 2.0 Key Files, section 3.1.8: the "H" template).
func SRKTemplate() tpm2.TPMTPublic {
	t := tpm2.ECCSRKTemplate
	t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	return t
}

// Counter is the index of the TPM that ends approvals: an approval counts while the counter is at
// most its version. vmlatch makes it with each TPM; a guest can only increment it.
const Counter tpm2.TPMHandle = 0x01800001

// never is a policy that nothing satisfies: it alone could remove the counter.
var never = sha256.Sum256([]byte("vmlatch: nothing satisfies this policy"))

// CounterPublic describes the counter, as it is made.
func CounterPublic() tpm2.TPMSNVPublic {
	return tpm2.TPMSNVPublic{
		NVIndex: Counter, NameAlg: tpm2.TPMAlgSHA256, AuthPolicy: tpm2.TPM2BDigest{Buffer: never[:]}, DataSize: 8,
		Attributes: tpm2.TPMANV{
			NT: tpm2.TPMNTCounter, AuthWrite: true, OwnerRead: true, AuthRead: true, PolicyDelete: true,
			PlatformCreate: true, NoDA: true,
		},
	}
}
