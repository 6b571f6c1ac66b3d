// Package quote reads the quotes of trust domains and judges them.
//
// A quote is made by the platform's quoting enclave for a guest that asks, over 64 bytes of the
// guest's choice. It names what was launched and what the guest has measured since, not what
// runs now.
//
// Sources: "DCAP" is Intel TDX DCAP Quoting Library API, appendix A; "TDX module" is Intel TDX
// Module Base Architecture Specification.
package quote
