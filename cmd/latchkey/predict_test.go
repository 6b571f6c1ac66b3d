//go:build linux

// These tests need swtee, which is for Linux, as their platform.

package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/igvm"
	"github.com/vmlatch/vmlatch/firmware/ovmf/ovmftest"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/launch"
	"github.com/vmlatch/vmlatch/firmware/tdx"
)

const (
	onOVMF = "--technology sev-snp --firmware OVMF.fd "
	onTDX  = "--technology tdx --firmware OVMF.fd "
	snp    = onOVMF + "--cpu EPYC-Milan "
)

// measured is what "latchkey measure" prints.
func (d *desk) measured(args string) string {
	d.t.Helper()
	out, _ := d.run("measure " + args)
	return strings.TrimSpace(out)
}

func TestMeasure(t *testing.T) {
	d := newDesk(t)
	img := parse(t, d.read("OVMF.fd"))
	layout, err := launch.LayoutOf(img)
	must(t, err)
	milan, err := launch.ParseCPU("EPYC-Milan")
	must(t, err)
	predict := func(in launch.Inputs) string {
		in.Firmware = layout
		digest, err := launch.Digest(in)
		must(t, err)
		return hexOf(digest)
	}
	kernel := d.kernelHashes("vmlinuz", "initrd", "quiet")
	mrtd, err := tdx.Predict(img, tdx.PageByPage)
	must(t, err)
	twoPass, err := tdx.Predict(img, tdx.TwoPass)
	must(t, err)
	gce, err := tdx.PredictGCE(img, "c3-standard-4")
	must(t, err)
	for args, want := range map[string]string{
		"--firmware OVMF.fd": hexOf(bytes32(sha256Of(img.Bytes))),
		withKernel:           predict(launch.Inputs{Technology: launch.SEV, Kernel: kernel}),
		"--technology sev-es --firmware OVMF.fd --cpu EPYC-Milan --vcpus 2 --vmsa legacy": predict(launch.Inputs{
			Technology: launch.SEVES, CPU: milan, VCPUs: 2, Profile: launch.Legacy,
		}),
		snp: predict(launch.Inputs{Technology: launch.SNP, CPU: milan, VCPUs: 1, Features: 1}),
		snp + withKernel: predict(launch.Inputs{
			Technology: launch.SNP, CPU: milan, VCPUs: 1, Features: 1, Kernel: kernel,
		}),
		onOVMF + "--cpu-signature 0xa00f11 --features 0x21 --vmm ec2": predict(launch.Inputs{
			Technology: launch.SNP, CPU: 0xa00f11, VCPUs: 1, Features: 0x21, VMM: launch.EC2,
		}),
		onTDX:                                 hexOf(mrtd[:]),
		onTDX + "--tdx-order two-pass":        hexOf(twoPass[:]),
		onTDX + "--gce-machine c3-standard-4": hexOf(gce[:]),
	} {
		if got := d.measured(args); got != want {
			t.Errorf("measure %s: %s, want %s", args, got, want)
		}
	}
	for args, want := range map[string]string{"--firmware OVMF.fd": "sha256", snp: "sha384"} {
		out, _ := d.run("measure --json " + args)
		var j struct{ Schema, Technology, Digest, Algorithm string }
		must(t, json.Unmarshal([]byte(out), &j))
		if j.Schema != "latchkey.digest/1" || j.Algorithm != want || j.Digest != d.measured(args) {
			t.Errorf("measure %s --json: %+v, want algorithm %s and the digest", args, j, want)
		}
	}
}

func bytes32(b [32]byte) []byte { return b[:] }

func TestMeasureRefusals(t *testing.T) {
	d := newDesk(t)
	d.write("text", "no firmware at all")
	d.write("guest.igvm", string(igvmFile(t)))
	d.write("broken.igvm", string(igvmFile(t)[:100]))
	for args, want := range map[string]string{
		"more":                                 `unexpected argument "more"`,
		"":                                     `--firmware is needed: the digest covers it`,
		"--technology svs --firmware OVMF.fd":  `--technology: unknown technology "svs": did you mean "sev"\?`,
		"--technology SNP --firmware OVMF.fd":  `did you mean "sev-snp"\?`,
		"--technology sgx --firmware OVMF.fd":  `unknown technology "sgx": must be sev, sev-es, sev-snp or tdx`,
		onOVMF:                                 `--cpu is needed.*\nhint: models: EPYC.*\nhint: any other model`,
		onOVMF + "--cpu Milan":                 `did you mean "EPYC-Milan"\?`,
		snp + "--cpu-signature 5":              `exclude each other`,
		onOVMF + "--cpu-signature 0x100000000": `--cpu-signature 0x100000000: must be a 32-bit number`,
		snp + "--features 0x1ffffffffffffffff": `--features 0x1f+: must be a number of at most 64 bits`,
		snp + "--vcpus 5000":                   `5000 vCPUs, must be 1 to 4096`,
		snp + "--vcpus 0":                      `0 vCPUs, must be 1 to 4096`,
		snp + "--vcpus 1.5":                    `--vcpus 1\.5: must be a whole number`,
		snp + "--vcpus 99999999999999999999":   `must be a whole number of at most 64 bits`,
		snp + "--tdx-order page":               `are for --technology tdx`,
		snp + "--svsm missing":                 `no such file`,
		snp + "--svsm text":                    `.`,
		snp + "--vars-size 5":                  `--vars-size: it only moves an --svsm`,
		"--firmware OVMF.fd --svsm OVMF.fd":    `--svsm: an SVSM needs --technology sev-snp`,
		onTDX + "--tdx-order pgae":             `unknown order "pgae": did you mean "page"\?`,
		onTDX + "--gce-machine c3-standard-4 --tdx-order page":  `exclude each other`,
		"--technology tdx " + withKernel:                        `MRTD does not cover it.*RTMR1`,
		"--technology sev-snp --firmware guest.igvm --cpu EPYC": `--cpu: an IGVM file brings all that is measured`,
		"--firmware guest.igvm":                                 `measured for --technology sev-snp only`,
		"--technology sev-snp --firmware broken.igvm":           `IGVM`,
		"--technology sev-snp --firmware text --cpu EPYC":       `no SEV metadata`,
	} {
		d.refused("measure "+args, cli.ExitUsage, want)
	}
	d.refused("measure "+onOVMF+"--cpu Zen", cli.ExitUsage,
		`--cpu: unknown CPU model "Zen": must be EPYC, .*\nhint: any other model`)
	d.refused("measure "+onTDX+"--gce-machine c3-standard4", cli.ExitUsage,
		`unknown machine type "c3-standard4": did you mean "c3-standard-4"\?`)
	d.refused("measure "+onTDX+"--gce-machine=", cli.ExitUsage, `unknown machine type ""`)
	d.refused("measure "+onTDX+"--gce-machine c3-standard-4 --vmm ec2", cli.ExitUsage, `leave out --vmm`)
}

// igvmFile is the first IGVM file among the test vectors.
func igvmFile(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile(topDir + "/firmware/internal/vectors/vectors.json")
	must(t, err)
	var all struct {
		Vectors []struct {
			Kind   string
			Inputs struct {
				File []byte `json:"igvm_gzip_base64"`
			}
		}
	}
	must(t, json.Unmarshal(b, &all))
	for _, v := range all.Vectors {
		if len(v.Inputs.File) == 0 {
			continue
		}
		z, err := gzip.NewReader(bytes.NewReader(v.Inputs.File))
		must(t, err)
		file, err := io.ReadAll(z)
		must(t, err)
		return file
	}
	t.Fatal("no vector has an IGVM file")
	return nil
}

func TestIGVM(t *testing.T) {
	d := newDesk(t)
	file := igvmFile(t)
	d.write("guest.igvm", string(file))
	f, err := igvm.Parse(file)
	must(t, err)
	want, err := f.SNPDigest(igvm.Options{})
	must(t, err)
	const line = "--technology sev-snp --firmware guest.igvm"
	if got := d.measured(line); got != want.String() {
		t.Errorf("measure: %s, want %s", got, want)
	}
	if out, _ := d.run("firmware guest.igvm"); row(t, out, "SNP digest") != want.String() {
		t.Errorf("firmware printed %q, want the digest %s", out, want)
	}
	out, _ := d.run("firmware --json guest.igvm")
	var j struct {
		Schema string
		Digest string `json:"snp-digest"`
		Size   int
	}
	must(t, json.Unmarshal([]byte(out), &j))
	if j.Schema != "latchkey.igvm/1" || j.Digest != want.String() || j.Size != len(file) {
		t.Errorf("firmware --json: %+v, want digest %s and size %d", j, want, len(file))
	}
	other, err := f.SNPDigest(igvm.Options{ZeroAsNormal: true})
	must(t, err)
	out, _ = d.run("explain " + line + " --digest " + other.String())
	matches(t, "explain", out, "combinations tried")
}

func TestExplain(t *testing.T) {
	d := newDesk(t)
	d.write(
		"other.fd",
		string(
			ovmftest.AmdSev(
				ovmftest.Size(imageSize),
				ovmftest.ResetVector(),
				ovmftest.Fill(func(b []byte) { b[9] = 9 }),
			),
		),
	)
	d.write("kernel-b", "a different kernel")
	for _, c := range []struct{ seen, predicted, want string }{
		{snp + "--vcpus 3", snp, `3 virtual CPUs instead of 1`},
		{snp + withKernel, snp + withKernel, `nothing differs`},
		{snp + "--kernel kernel-b --initrd initrd --cmdline quiet", snp + withKernel + "--other kernel-b", `kernel`},
		{
			onTDX + "--gce-machine c3-standard-4", "--technology tdx --firmware OVMF.fd",
			`on a c3-standard-4`,
		},
		{"--firmware other.fd", "--firmware OVMF.fd --other-firmware other.fd", `other\.fd`},
	} {
		line := "explain " + c.predicted + " --digest " + d.measured(c.seen)
		out, _ := d.run(line)
		matches(t, line, out, c.want+`.*\(\d+ combinations tried\)`)
	}
	out, _ := d.run("explain --json " + snp + "--digest " + d.measured(snp+"--vcpus 2"))
	var j struct {
		Schema   string
		Found    bool
		Sentence string
	}
	must(t, json.Unmarshal([]byte(out), &j))
	if j.Schema != "latchkey.explanation/1" || !j.Found || j.Sentence == "" {
		t.Errorf("explain --json: %+v, want a sentence that was found", j)
	}
}

func TestExplainMeasurement(t *testing.T) {
	d := newDesk(t)
	d.session("guest")
	d.launch("guest", sev.PolicyDefault, d.read("OVMF.fd"), d.kernelHashes("vmlinuz", "initrd", "quiet"))
	const line = "explain --owner guest.owner --measurement measurement.json "
	out, _ := d.run(line + "--firmware OVMF.fd --kernel vmlinuz --initrd initrd --cmdline loud")
	matches(t, line, out, `the command line .* what the host names, sha256`)
	d.refused(line+"--firmware missing", cli.ExitUsage, `no such file`)
	d.refused("explain --measurement measurement.json --firmware OVMF.fd", cli.ExitUsage,
		`--owner is needed with --measurement`)
	d.refused("explain --measurement missing --owner guest.owner --firmware OVMF.fd", cli.ExitUsage, `no such file`)
	d.refused("explain --measurement measurement.json --owner missing --firmware OVMF.fd",
		cli.ExitUsage, `no such file`)
	d.refused(line+"--firmware OVMF.fd --other missing", cli.ExitUsage, `no such file`)
}

func TestExplainRefusals(t *testing.T) {
	d := newDesk(t)
	unknown := strings.Repeat("ab", 48)
	for _, c := range []struct {
		args string
		code cli.ExitCode
		want string
	}{
		{"more", cli.ExitUsage, `unexpected argument "more"`},
		{"", cli.ExitUsage, `give what was seen.*\nhint: "latchkey explain --help" shows an example`},
		{"--digest 00", cli.ExitUsage, `--firmware is needed`},
		{snp + "--digest 00", cli.ExitUsage, `--digest: must be 48 bytes in hex for sev-snp`},
		{"--firmware OVMF.fd --digest xx", cli.ExitUsage, `--digest: must be 32 bytes in hex for sev`},
		{snp + "--other-firmware missing --digest " + unknown, cli.ExitUsage, `--other-firmware: .*no such file`},
		{snp + "--other missing --digest " + unknown, cli.ExitUsage, `no such file`},
		{
			onTDX + "--other-firmware missing --digest " + unknown,
			cli.ExitUsage, `--other-firmware: .*no such file`,
		},
		{
			withKernel + "--digest " + unknown[:64],
			cli.ExitRefused, `unexplained: none of \d+ combinations.*\nhint: name files`,
		},
	} {
		d.refused("explain "+c.args, c.code, c.want)
	}
	code, out, errs := d.try("explain --json " + withKernel + "--digest " + unknown[:64])
	if code != cli.ExitRefused || errs != "" || !strings.Contains(out, `"found": false`) {
		t.Errorf("unexplained as JSON: code %d, %q, %q, want %d and found false alone",
			code, out, errs, cli.ExitRefused)
	}
}
