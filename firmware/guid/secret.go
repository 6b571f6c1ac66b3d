package guid

import "crypto/sha256"

// Entries of the table of secrets that SEV guests find in their memory.
var (
	// DiskPassphrase is the entry that grub and guests read a disk key from (Linux,
	// drivers/virt/coco/efi_secret; grub, efisecret).
	DiskPassphrase = MustParse("736869e5-84f0-4973-92ec-06879ce3da0b")
	// Injected is the entry by which the owner's broker vouches for the others.
	Injected = MustParse("5f9e5e5a-6d2b-8c71-9d4e-3b1f0a7c2e64")
)

// OfSecret is the entry of a secret by its name: "disk" is the well-known one, and others follow
// from their names (RFC 9562, version 8, over SHA-256).
func OfSecret(name string) GUID {
	if name == "disk" {
		return DiskPassphrase
	}
	sum := sha256.Sum256([]byte("vmlatch secret " + name))
	sum[7] = sum[7]&0x0f | 0x80 // the version is in the high byte of a little-endian field
	sum[8] = sum[8]&0x3f | 0x80
	return GUID(sum[:16])
}
