// Command findfirmware prints the first firmware image on this machine that can check a
// kernel and receive a secret under SEV, in the order of QEMU's firmware descriptors.
package main

import (
	"fmt"
	"os"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/sev"
)

func main() {
	found, _ := ovmf.FindDescriptors(ovmf.DescriptorDirs()...) // malformed ones do not matter here
	for _, d := range found {
		if d.Device == "memory" && d.Fits("x86_64", "q35", "amd-sev") && usable(d.Image) {
			fmt.Println(d.Image)
			return
		}
	}
	os.Exit(1)
}

func usable(image string) bool {
	b, err := os.ReadFile(image)
	if err != nil {
		return false
	}
	img, err := ovmf.Parse(b)
	if err != nil {
		return false
	}
	hashes, _, err1 := img.HashArea()
	secret, _, err2 := img.SecretArea()
	return err1 == nil && err2 == nil && sev.HashArea(hashes).Holds() && secret.Size > 0
}
