// Package policy reads an owner's policy file: which guests on which platforms get which secrets
// (latch-policy/1). Digests are worked out from the owner's own copies of what the guest boots.
// An empty or a missing demand is never "anything".
package policy
