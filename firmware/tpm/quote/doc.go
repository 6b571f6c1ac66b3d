// Package quote has a TPM sign its registers; package verify verifies that. A quote says what the
// TPM was told was booted; it is worth as much as the TPM's keeper: a vTPM's keeper is the host,
// which can make up any quote.
//
// Three steps tie a quote to a TPM. Its maker's certificate names an endorsement key (EK), which
// cannot sign. A challenge to that key shows that the attestation key (AK) is in the same TPM. The
// AK then signs quotes.
//
// Files: identity.go reads a TPM's keys, credential.go has the challenge, quote.go makes quotes.
//
// Sources: "part 1" to "part 3" are those of the TCG TPM 2.0 Library, revision 1.59; TCG EK
// Credential Profile 2.5.
package quote
