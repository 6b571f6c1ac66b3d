package check

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/nearest"
	"github.com/vmlatch/vmlatch/launcher/plan"
)

// memoryBackend are the properties of every memory backend (QEMU, qapi/qom.json,
// MemoryBackendProperties).
const memoryBackend = "dump host-nodes merge policy prealloc prealloc-threads prealloc-context share reserve size " +
	"x-use-canonical-path-for-ramblock-id"

// objects are the types that [[object]] may have, with their properties (QEMU,
// qapi/qom.json): those that devices need, and that neither change what is launched nor
// open a way to the VM. What would put a secret on QEMU's command line, where each user of
// the host can read it, is not among them: data and password-like properties.
func objects() map[string]string {
	tls := "dir endpoint priority verify-peer"
	return map[string]string{
		"rng-random": "filename opened", "rng-builtin": "opened",
		"iothread":       "poll-max-ns poll-grow poll-shrink poll-weight aio-max-batch thread-pool-min thread-pool-max",
		"thread-context": "cpu-affinity node-affinity",
		"throttle-group": "limits x-iops-total x-iops-read x-iops-write x-bps-total x-bps-read x-bps-write " +
			"x-iops-total-max x-iops-read-max x-iops-write-max x-bps-total-max x-bps-read-max x-bps-write-max " +
			"x-iops-total-max-length x-iops-read-max-length x-iops-write-max-length x-bps-total-max-length " +
			"x-bps-read-max-length x-bps-write-max-length x-iops-size",
		"iommufd": "fd",
		"can-bus": "", "can-host-socketcan": "if canbus",
		"secret": "file format keyid iv loaded", // and not data: it would be read by everyone

		"tls-creds-x509": tls + " passwordid sanity-check loaded", "tls-creds-psk": tls + " username loaded",
		"tls-creds-anon": tls + " loaded",
		"authz-list":     "policy rules", "authz-list-file": "filename refresh", "authz-pam": "service",
		"authz-simple": "identity",

		"cryptodev-backend-builtin": "queues throttle-bps" +
			" throttle-ops", "cryptodev-backend-lkcf": "queues throttle-bps throttle-ops",
		"memory-backend-ram":   memoryBackend,
		"memory-backend-memfd": memoryBackend + " hugetlb hugetlbsize seal",
		"memory-backend-file":  memoryBackend + " align offset discard-data mem-path pmem readonly rom",
		"memory-backend-shm":   memoryBackend,
	}
}

// objectFault says what is wrong with a table [[object]]; "" if nothing is.
func objectFault(o map[string]any) string {
	kind, id := plan.Texts(o)["qom-type"], plan.Texts(o)["id"]
	all := objects()
	properties, ok := all[kind]
	switch {
	case !ok:
		return kind
	case id == plan.ObjectID || id == plan.MemoryID:
		return fmt.Sprintf("id %q is vmlatch's own", id)
	}
	known := append(strings.Fields(properties), "qom-type", "id")
	for _, name := range slices.Sorted(maps.Keys(o)) {
		switch {
		case kind == "secret" && name == "data":
			return "secret with data: it would be on QEMU's command line, which each user of the host can read;" +
				" use file"
		case !slices.Contains(known, name):
			return fmt.Sprintf("%s: %v", kind, nearest.Unknown("property", name, known))
		}
	}
	return ""
}
