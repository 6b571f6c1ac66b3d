package ovmf

import "github.com/vmlatch/vmlatch/firmware/uefivar"

// HasPlatformKey reports whether the image has a platform key in its own store of variables:
// its Secure Boot is on, with the keys that are there.
func (img *Image) HasPlatformKey() bool {
	store, err := uefivar.Read(img.Bytes)
	return err == nil && store.SecureBoot()
}
