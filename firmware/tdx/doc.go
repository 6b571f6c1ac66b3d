// Package tdx holds what Intel's Trust Domain Extensions define outside the
// guest: how MRTD, the measurement of a trust domain's initial memory, comes
// about.
//
// Sources, named in the comments below by their short titles:
//   - "TDX ABI": Intel, TDX Module ABI Reference Specification, publication 348551.
//   - "TDX base": Intel, TDX Module Base Architecture Specification, publication 348549.
package tdx
