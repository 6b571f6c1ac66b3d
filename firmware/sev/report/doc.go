// Package report reads the attestation reports of SEV-SNP guests and judges them.
//
// A report is made by the platform's firmware for a guest that asks, over 64 bytes of the
// guest's choice, and signed by a key of the chip. It names what was launched, not what runs now.
//
// Source: "SNP ABI" is AMD publication 56860, SEV Secure Nested Paging Firmware ABI
// Specification, chapter 7.3, table 23.
package report
