// Package evidence judges what confidential guests show of themselves: attestation reports of
// SEV-SNP and quotes of TDX, by an owner's demands. A judgement is a pure function of bytes and
// of a time: it asks neither a clock nor a network.
package evidence
