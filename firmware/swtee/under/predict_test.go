//go:build !quick

package under

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/firstboot"
	"github.com/vmlatch/vmlatch/firmware/internal/vectors"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/launch"
	"github.com/vmlatch/vmlatch/firmware/tdx"
	"github.com/vmlatch/vmlatch/integration/qemus"
)

// shuffled returns a firmware whose code and SEV metadata are random: other
// sections, in another order, at other addresses.
func shuffled(t testing.TB, rnd *rand.Rand, image []byte) []byte {
	t.Helper()
	b := slices.Clone(image)
	img, err := ovmf.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	sections, err := img.SEVMetadata()
	if err != nil || len(sections) == 0 {
		t.Fatal(len(sections), err)
	}
	rnd.Shuffle(len(sections), func(i, j int) { sections[i], sections[j] = sections[j], sections[i] })
	gpa := uint32(0x800000)
	for i := range sections {
		s := &sections[i]
		gpa += uint32(rnd.IntN(3)) * sev.PageSize
		if s.GPA, s.Size = gpa, sev.PageSize; s.Type == ovmf.SectionMemory {
			s.Size *= uint32(1 + rnd.IntN(12))
		}
		gpa += s.Size
	}
	rnd.Shuffle(len(sections), func(i, j int) { sections[i], sections[j] = sections[j], sections[i] })
	d, _ := img.Entry(ovmf.GUIDSEVMetadata)
	at := len(b) - int(binary.LittleEndian.Uint32(d)) + 16
	for i, s := range sections {
		for k, v := range []uint32{s.GPA, s.Size, uint32(s.Type)} {
			binary.LittleEndian.PutUint32(b[at+12*i+4*k:], v)
		}
	}
	for range 50 {
		b[rnd.IntN(len(b)/2)] = byte(rnd.Uint32())
	}
	return b
}

// cpuModels are the CPU models that both package launch and a QEMU know.
func cpuModels(t testing.TB, qemu string) []string {
	t.Helper()
	help, err := exec.Command(qemu, "-cpu", "help").Output()
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(strings.Fields(string(help)), func(word string) bool {
		_, err := launch.ParseCPU(word)
		return err != nil
	})
}

// TestPredictionsEqualSubmissions: for random firmware, kernels, vCPUs and models
// the predicted digest equals the digest of what real QEMU submits.
func TestPredictionsEqualSubmissions(t *testing.T) {
	image, err := os.ReadFile(guestFile(t, "OVMF.amdsev.fd"))
	if err != nil {
		t.Fatal(err)
	}
	kernel := guestFile(t, "vmlinuz")
	seed := rand.Uint64()
	t.Logf("seed %#x", seed)
	qemus.Each(t, "7.2", func(t *testing.T, qemu string) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		models := cpuModels(t, qemu)
		old := strings.Contains(qemu, "/7.2/")
		for i := range 12 {
			technology := []launch.Technology{launch.SEV, launch.SEVES, launch.SNP, launch.SNP}[rnd.IntN(4)]
			if old && technology == launch.SNP {
				technology = launch.SEVES
			}
			c := randomCase{
				t:          t,
				rnd:        rnd,
				qemu:       qemu,
				old:        old,
				technology: technology,
				model:      models[rnd.IntN(len(models))],
				kernel:     kernel,
				image:      image,
			}
			t.Run(fmt.Sprintf("%d-%s-%s", i, technology, c.model), c.run)
		}
	})
}

type randomCase struct {
	t          testing.TB
	rnd        *rand.Rand
	qemu       string
	old        bool // before legacy-vm-type
	technology launch.Technology
	model      string
	kernel     string
	image      []byte
}

func (c *randomCase) run(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	image := shuffled(t, c.rnd, c.image)
	img, err := ovmf.Parse(image)
	if err != nil {
		t.Fatal(err)
	}
	in := launch.Inputs{Technology: c.technology, VCPUs: 1 + c.rnd.IntN(6)}
	if in.Firmware, err = launch.LayoutOf(img); err != nil {
		t.Fatal(err)
	}
	if in.CPU, err = launch.ParseCPU(c.model); err != nil {
		t.Fatal(err)
	}
	props, args := []string{}, []string{"-smp", strconv.Itoa(in.VCPUs), "-cpu", c.model}
	if c.rnd.IntN(3) > 0 {
		initrd := make([]byte, c.rnd.IntN(5000))
		for i := range initrd {
			initrd[i] = byte(c.rnd.Uint32())
		}
		cmdline := fmt.Sprintf("console=ttyS0 x=%d ", c.rnd.Uint32())
		file := write("initrd", initrd)
		h, err := sev.HashKernelFiles(c.kernel, firstboot.Initrd{File: file}, cmdline)
		if err != nil {
			t.Fatal(err)
		}
		in.Kernel = &h
		props = append(props, "kernel-hashes=on")
		args = append(args, "-kernel", c.kernel, "-initrd", file, "-append", cmdline)
	}
	firmware := write("firmware", image)
	if c.technology == launch.SNP {
		in.Features = launch.DefaultFeatures
		args = append(snpArgs(firmware, props...), args...)
	} else {
		if c.technology == launch.SEVES {
			props = append(props, "policy=5")
			if in.Profile = launch.Profile(c.rnd.IntN(2)); c.old {
				in.Profile = launch.Legacy
			} else if in.Profile == launch.Legacy {
				props = append(props, "legacy-vm-type=on")
			} else {
				props = append(props, "legacy-vm-type=off")
			}
		}
		args = append(sevArgs(firmware, props...), args...)
	}
	want, err := launch.Digest(in)
	if err != nil {
		t.Fatal(err)
	}
	r := startFake(t, c.qemu, args).up()
	if c.technology == launch.SNP {
		r.execute("cont", nil, nil)
	}
	if got := r.digest(); got != hex.EncodeToString(want) {
		t.Errorf("digest of what QEMU submitted: %s, predicted %x", got, want)
	}
	r.quit()
}

// TestTDXPredictionEqualsSubmission does the same for TDX, with a random body.
func TestTDXPredictionEqualsSubmission(t *testing.T) {
	image := slices.Clone(vectors.File(t, "sid/OVMF.inteltdx.ms.fd"))
	for range 100 {
		image[len(image)/2+rand.IntN(len(image)/4)] ^= byte(1 + rand.IntN(255))
	}
	img, err := ovmf.Parse(image)
	if err != nil {
		t.Fatal(err)
	}
	want, err := tdx.Predict(img, tdx.PageByPage)
	if err != nil {
		t.Fatal(err)
	}
	firmware := filepath.Join(t.TempDir(), "firmware")
	if err := os.WriteFile(firmware, image, 0o600); err != nil {
		t.Fatal(err)
	}
	qemus.Each(t, "11.1", func(t *testing.T, qemu string) {
		r := startFake(t, qemu, tdxArgs(firmware)).up()
		if got := r.digest(); got != hexString(want[:]) {
			t.Errorf("MRTD %s, predicted %x", got, want)
		}
		r.quit()
	})
}
