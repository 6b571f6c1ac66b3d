package main

import (
	"encoding/base64"
	"os"
	"strings"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
)

// wantsTPM reports whether the guest is to show what its TPM holds.
func wantsTPM(cmdline string) bool { return strings.Contains(cmdline, "vmlatch.tpm") }

const eventLog = "/sys/kernel/security/tpm0/binary_bios_measurements"

// showTPM prints the PCRs of the SHA-256 bank as the TPM reads them, and the event log.
func showTPM() error {
	tpm, err := linuxtpm.Open("/dev/tpmrm0")
	if err != nil {
		return err
	}
	defer tpm.Close()
	for pcr := range uint(16) {
		r, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{
			{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(pcr)},
		}}}.Execute(tpm)
		if err != nil {
			return err
		}
		say("pcr %d %x", pcr, r.PCRValues.Digests[0].Buffer)
	}
	log, err := os.ReadFile(eventLog)
	if err != nil {
		return err
	}
	const line = 600
	for text := base64.StdEncoding.EncodeToString(log); text != ""; text = text[min(line, len(text)):] {
		say("log %s", text[:min(line, len(text))])
	}
	return nil
}
