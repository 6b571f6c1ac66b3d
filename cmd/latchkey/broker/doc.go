// Package broker is the owner's service that guests ask for their secrets: it judges their
// evidence by the owner's policies and answers over latch/1 (firmware/evidence/exchange).
//
// One goroutine, the store's, makes every decision, so that two requests cannot both be the first.
// What it decides is written as a line of audit.jsonl, then as state.json, and only then answered:
//
//	connection ─ read, judge (4) ─► store: nonce, launch, once, max, ask ─► audit ─► answer
//
// The audit is the one source of truth: at the start it is read from its beginning, and what was
// decided follows from it. state.json only remembers how far the audit went, so that a truncated
// one is noticed.
package broker
