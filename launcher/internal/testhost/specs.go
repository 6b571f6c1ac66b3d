package testhost

import "maps"

// Specs are specs that no check finds fault with, by technology.
func Specs() map[string]string { return maps.Clone(specs) }

var specs = map[string]string{
	"none": `
name = "vm"
`,
	"sev": `
name = "vm"
memory = "64MiB"
[firmware]
image = "fw"
[kernel]
image = "k"
[confidential]
technology = "sev"
owner-cert = "cert"
session = "session"
`,
	"sev-es": `
name = "vm"
memory = "64MiB"
cpu = "EPYC-Milan-v1"
[firmware]
image = "fw"
[confidential]
technology = "sev-es"
[latch]
until = "nothing"
`,
	"sev-snp": `
name = "vm"
memory = "64MiB"
cpu = "EPYC-Milan-v1"
[firmware]
image = "fw"
[kernel]
image = "k"
[confidential]
technology = "sev-snp"
[latch]
until = "nothing"
`,
	"tdx": `
name = "vm"
memory = "64MiB"
machine = "pc-q35-11.1"
[firmware]
image = "fw"
[confidential]
technology = "tdx"
quote-socket = "qgs"
[latch]
until = "nothing"
`,
}

// Specs with most of the keys that there are.
const (
	FullSNP = `
name = "vm"
cpus = 2
cpu = "EPYC-Genoa"
[firmware]
image = "fw"
[kernel]
image = "k"
[confidential]
technology = "sev-snp"
kernel-hashes = true
policy = ["smt", "abi=1.55"]
host-data = "0100000000000000000000000000000000000000000000000000000000000002"
[latch]
until = "nothing"
`

	FullSEV = `
name = "vm"
memory = "512MiB"
[firmware]
image = "OVMF.amdsev.fd"
[kernel]
image = "vmlinuz"
initrd = "initrd,1.img"
cmdline = "console=ttyS0 a,b"
[confidential]
technology = "sev"
policy = ["no-debug", "no-key-sharing", "sev"]
owner-cert = "vm.godh"
session = "vm.session"
`
)
