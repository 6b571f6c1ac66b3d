// Package qmp speaks the QEMU Machine Protocol.
//
// Start with [Dial] or [NewConn] for a connection and [Conn.Subscribe] for its
// events. Commands are values:
//
//	caps, err := qmp.QuerySEVCapabilities{}.Execute(ctx, conn)
//
// Code written for go-qemu takes [Conn.Monitor].
//
// # Protocol
//
// Both sides send one JSON object a line (QEMU, docs/interop/qmp-spec.rst):
//
//	server                                     client
//	{"QMP": {"version": …, "capabilities": …}}            greeting, once
//	                 {"execute": "qmp_capabilities", "id": 1}   leaves negotiation mode
//	{"return": {}, "id": 1}
//	                 {"execute": "query-status", "id": 2}
//	{"event": "STOP", "timestamp": …}                     at any time, also in between
//	{"return": {"status": "paused", …}, "id": 2}
//
// One goroutine reads; replies are matched by a numeric id, so a reply that
// comes after its caller has given up is dropped and does no harm. Events go to
// bounded queues: a slow subscriber loses events, which is counted, but never
// the last one of each kind that decides about a launch (see [Critical]), and
// never makes a command wait. A lost connection reaches subscribers as the
// event [EventConnectionLost].
package qmp
