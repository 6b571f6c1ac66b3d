package kds

import (
	"encoding/hex"
	"fmt"
)

// Server is AMD's key distribution service.
const Server = "https://kdsintf.amd.com"

// VCEKURL is where AMD publishes the certificate of a chip's VCEK for a TCB, in DER (KDS,
// chapter 4.1). The ID may be padded with zeros, as reports of Turin have it.
func VCEKURL(l Line, chip []byte, t TCB) string {
	if n := l.HWIDSize(); len(chip) > n {
		chip = chip[:n]
	}
	fmc := ""
	if l == Turin {
		fmc = fmt.Sprintf("fmcSPL=%02d&", t.FMC)
	}
	return fmt.Sprintf("%s/vcek/v1/%s/%s?%sblSPL=%02d&teeSPL=%02d&snpSPL=%02d&ucodeSPL=%02d", Server, l,
		hex.EncodeToString(chip), fmc, t.BootLoader, t.TEE, t.SNP, t.Microcode)
}

// CRLURL is where AMD publishes the list of revoked authorities for a kind of key, in DER (KDS,
// chapter 4.3).
func CRLURL(l Line, s Signer) string {
	kind := "vcek"
	if s == VLEK {
		kind = "vlek"
	}
	return fmt.Sprintf("%s/%s/v1/%s/crl", Server, kind, l)
}
