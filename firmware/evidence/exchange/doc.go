// Package exchange is latch/1, the messages by which a guest proves itself to its owner's broker
// and gets its secrets. Messages protect themselves, so the host may carry them: the broker signs
// with the key that the guest's measured command line names, and secrets are sealed to a key that
// was born in the guest's boot and is covered by the evidence.
//
// A message is one line of compact JSON, its fields in the order of the structs here. A receiver
// decodes, encodes again and refuses what is not the same, byte by byte. Envelopes are DSSE's,
// signed with Ed25519 over the decoded payload.
//
//	agent                                   broker
//	  Ask {hello}                  ──►
//	                               ◄──      Challenge {hello, nonce}, signed
//	  Request {challenge, statement,
//	    evidence over its hash}    ──►
//	                               ◄──      Release | Denial | Pending, signed
//	  Receipt {mac}                ──►
//
// The package judges no evidence and keeps no state, and links no verifier: an agent is small.
package exchange
