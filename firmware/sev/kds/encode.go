package kds

import (
	"crypto/x509/pkix"
	"encoding/asn1"
)

// Extensions are AMD's extensions of a certificate, as ParseCertificate reads them: for emulators
// and tests.
func (c *Certificate) Extensions() ([]pkix.Extension, error) {
	var list []pkix.Extension
	var failed error
	add := func(id asn1.ObjectIdentifier, value any, params string) {
		b, err := asn1.MarshalWithParams(value, params)
		if err != nil {
			failed = err
		}
		list = append(list, pkix.Extension{Id: id, Value: b})
	}
	reserved := []int{4, 5, 6, 7}
	structure := 0
	if c.Line == Turin {
		structure, reserved = 1, reserved[1:]
		add(oidFMC, int(c.TCB.FMC), "")
	}
	add(oidStructVersion, structure, "")
	add(oidProduct, c.Product, "ia5")
	add(oidBootLoader, int(c.TCB.BootLoader), "")
	add(oidTEE, int(c.TCB.TEE), "")
	add(oidSNP, int(c.TCB.SNP), "")
	for _, n := range reserved {
		add(oid(3, n), 0, "")
	}
	add(oidMicrocode, int(c.TCB.Microcode), "")
	if c.Signer == VLEK {
		add(oidCSP, c.CSP, "ia5")
	} else {
		list = append(list, pkix.Extension{Id: oidHWID, Value: c.HWID})
	}
	return list, failed
}
