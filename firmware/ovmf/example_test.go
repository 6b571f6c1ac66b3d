package ovmf_test

import (
	"fmt"
	"log"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/ovmf/ovmftest"
)

// Where a firmware image wants the hashes of the kernel and the launch secret.
func Example() {
	img, err := ovmf.Parse(ovmftest.AmdSev()) // an image for tests; see ReadFile
	if err != nil {
		log.Fatal(err)
	}
	hashes, ok, err := img.HashArea()
	if err != nil || !ok {
		log.Fatal("it checks no kernels: ", err)
	}
	secret, _, err := img.SecretArea()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("kernel hashes at %#x+%#x\nlaunch secret at %#x+%#x\n", hashes.Base, hashes.Size, secret.Base,
		secret.Size)
	// Output:
	// kernel hashes at 0x810c00+0x400
	// launch secret at 0x810000+0xc00
}
