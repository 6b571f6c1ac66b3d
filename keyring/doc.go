// Package keyring keeps keys in the Linux kernel in such a way that they cannot
// outlive the processes that use them.
//
// A key belongs to a keyring, and a keyring lives as long as some credentials name it.
// A [Ring] is an anonymous session keyring, which a thread joins and its children
// inherit: when the last of them is gone the kernel collects the keyring with its
// keys. Nothing else holds it, for it has no name and no link anywhere.
//
// Credentials are a thread's, not a process's (see credentials(7)): a Go program
// that changes keyrings on one thread finds other ones on the next. So each Ring
// lives on a thread of its own ([Apart]) and is used only within the function that
// gets it.
//
// [Check] says what the kernel would refuse of a key: the kernel itself gives no reason.
// [MKTME] writes the payload of the key type that Intel's patches for MKTME brought
// and no released Linux has.
package keyring
