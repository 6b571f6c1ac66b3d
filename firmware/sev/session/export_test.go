package session

// KDF is the key derivation, for tests against published values.
var KDF = kdf
