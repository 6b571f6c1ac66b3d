// Package kds knows AMD's certificates for SEV-SNP: the endorsement certificates (VCEK and
// VLEK) that the keys behind attestation reports have, the authorities above them, and the
// lists of revoked ones. They come from AMD's key distribution service.
//
// Source: "KDS" is AMD publication 57230, Versioned Chip Endorsement Key (VCEK) Certificate and
// KDS Interface Specification.
package kds
