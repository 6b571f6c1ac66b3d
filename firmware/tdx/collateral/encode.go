package collateral

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
)

// pair is an element of the extension of a platform's certificate.
type pair struct {
	ID    asn1.ObjectIdentifier
	Value any
}

func element(last ...int) asn1.ObjectIdentifier {
	return append(oidSGX[:len(oidSGX):len(oidSGX)], last...)
}

// Elements that ParsePCK does not read: the type of SGX, and the configuration of a platform of
// several packages.
const (
	elemType          = 5
	elemConfiguration = 7

	typeScalable = asn1.Enumerated(1) // SGX type "scalable"
)

// Extension is Intel's extension of the certificate of a platform's key, as ParsePCK reads it: for
// emulators and tests.
func (p *PCK) Extension() (pkix.Extension, error) {
	tcb := []pair{}
	for i, n := range p.SVN {
		tcb = append(tcb, pair{element(elemTCB, i+1), int(n)})
	}
	tcb = append(tcb, pair{element(elemTCB, elemPCESVN), int(p.PCESVN)}, pair{element(elemTCB, elemCPUSVN), p.CPUSVN})
	all := []pair{
		{element(elemPPID), p.PPID},
		{element(elemTCB), tcb},
		{element(elemPCEID), p.PCEID},
		{element(elemFMSPC), p.FMSPC},
		{element(elemType), typeScalable},
	}
	if p.InstanceID != nil {
		configuration := []pair{ // dynamic platform, cached keys, SMT
			{element(elemConfiguration, 1), true},
			{element(elemConfiguration, 2), true},
			{element(elemConfiguration, 3), true},
		}
		all = append(all, pair{element(elemInstance), p.InstanceID}, pair{element(elemConfiguration), configuration})
	}
	b, err := asn1.Marshal(all)
	return pkix.Extension{Id: oidSGX, Value: b}, err
}

// Bytes is collateral as one JSON object, the reverse of Parse.
func (c *Collateral) Bytes() ([]byte, error) {
	return json.Marshal(file{
		PCKCRLChain: string(c.PCKCRLChain),
		RootCRL:     hex.EncodeToString(c.RootCRL), PCKCRL: hex.EncodeToString(c.PCKCRL),
		TCBInfoChain: string(c.TCBInfoChain), TCBInfo: string(c.TCBInfo), TCBInfoSig: hex.EncodeToString(c.TCBInfoSig),
		QEChain: string(c.QEChain), QE: string(c.QE), QESig: hex.EncodeToString(c.QESig),
	})
}
