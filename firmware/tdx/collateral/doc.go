// Package collateral knows what Intel says of platforms that run trust domains: the certificate
// of a platform's key (PCK), the lists of revoked ones, the states of platforms and modules (TCB
// info) and the identity of the quoting enclave. All come from Intel's provisioning
// certification service.
//
// Sources: "PCS" is Intel's API documentation of the Provisioning Certification Service,
// version 4; "PCK profile" is Intel SGX PCK Certificate and Certificate Revocation List Profile
// Specification; "QVL" is the behaviour of Intel's quote verification library.
package collateral
