package launch_test

import (
	"fmt"
	"log"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/ovmf/ovmftest"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/launch"
)

// The digest that a platform must report for a guest of two vCPUs with this firmware
// and this kernel.
func Example() {
	img, err := ovmf.Parse(ovmftest.AmdSev()) // an image for tests; see ovmf.ReadFile
	if err != nil {
		log.Fatal(err)
	}
	firmware, err := launch.LayoutOf(img)
	if err != nil {
		log.Fatal(err)
	}
	kernel, err := sev.HashKernel(strings.NewReader("kernel"), strings.NewReader("initrd"), "console=ttyS0")
	if err != nil {
		log.Fatal(err)
	}
	cpu, err := launch.ParseCPU("EPYC-Milan")
	if err != nil {
		log.Fatal(err)
	}
	digest, err := launch.Digest(launch.Inputs{
		Technology: launch.SNP,
		Firmware:   firmware,
		Kernel:     &kernel,
		VCPUs:      2,
		CPU:        cpu,
		Features:   launch.DefaultFeatures,
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d bytes: %x…\n", len(digest), digest[:8])
	// Output:
	// 48 bytes: 6e08efb93b005220…
}
