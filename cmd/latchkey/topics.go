package main

import (
	_ "embed"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
)

//go:embed topics/appliance-policy.txt
var topicAppliance string

//go:embed topics/broker.txt
var topicBroker string

//go:embed topics/verdict.schema.json
var verdictSchema string

var topics = []cli.Topic{{Name: "trust", Title: "what a verified measurement proves, and what it does not", Text: `
A measurement that verifies proves that a secure processor, whose certificates
end in AMD's root, loaded exactly the firmware, kernel, initrd and command line
that you named into encrypted memory, under exactly your policy, and that the
guest has not run yet.

It does not prove what disks, network and other devices the host attached, how
much memory or how many CPUs the guest has, or that the platform's firmware has
no known bugs: ask for a firmware version with api=MAJOR.MINOR in the policy, next
to no-debug.

A platform whose root is a test root (swtee) proves nothing about protection.
latchkey says "emulated" wherever such a platform took part.`}, {
	Name: "policy", Title: "what a guest policy forbids the host", Text: `
The platform enforces the policy for as long as the guest runs. By default a
session forbids all three of these; each can be allowed by its own option:

no-debug         the host cannot read or write the guest's memory (--allow-debug)
no-key-sharing   no other guest gets this guest's key (--allow-key-sharing)
no-send          the guest is not sent to another platform (--allow-send)

Words for --policy, joined by commas, are added to the default:

es               SEV-ES is required: registers are protected too
domain, sev      with --allow-send: it is sent only within its owner's domain, only
                 to platforms whose certificates end in AMD's root
api=1.55         the platform's firmware has at least this API version

A number, such as 0xf, is all of a policy; what it lacks of the default must be
allowed. The host's spec must have the very same policy, which "latchkey session"
prints: with a different one the platform refuses the session. "latchkey verify" and
"latchkey secret" say what a policy leaves open.

The policies of SEV-SNP, for "latchkey idblock make", are smt, single-socket, migrate,
debug, cxl, aes-256-xts, no-rapl, ciphertext-hiding and abi=1.55.`,
}, {
	Name: "unattended", Title: "a broker that gives your guests their secrets", Text: topicBroker,
}, {
	Name: "appliance-policy", Title: "the policy file: which guests are accepted, and what they get",
	Text: topicAppliance,
	Man:  "latchkey-policy.toml.5",
}, {
	Name: "verdict.json", Title: "the JSON Schema of latchkey report and quote", Text: verdictSchema,
	Man: "latchkey-verdict.json.5",
}}
