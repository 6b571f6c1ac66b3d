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
