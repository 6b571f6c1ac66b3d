package evidencetest

import (
	"crypto/sha512"

	"github.com/vmlatch/vmlatch/firmware/authenticode"
	"github.com/vmlatch/vmlatch/firmware/bzimage"
	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/eventlog/eventlogtest"
	"github.com/vmlatch/vmlatch/firmware/tdx/ccel"
)

// Hashed is an event that measures its own data.
func Hashed(register int, kind uint32, data []byte) ccel.Event {
	return ccel.Event{Register: register, Type: kind, Digest: sha512.Sum384(data), Data: data}
}

// Log is an event log as firmware writes it, without the padding.
func Log(events ...ccel.Event) []byte {
	list := make([]eventlog.Event, len(events))
	for i, e := range events {
		list[i] = eventlog.Event{
			Index: uint32(e.Register + 1), Type: eventlog.Type(e.Type), Data: e.Data,
			Digests: map[eventlog.Bank][]byte{eventlog.SHA384: e.Digest[:]},
		}
	}
	return eventlogtest.Write([]eventlog.Bank{eventlog.SHA384}, list...)
}

// DirectBoot are the events of a kernel that firmware of the newest profile boots directly.
func DirectBoot(kernel, initrd []byte, cmdline string) []ccel.Event {
	sum, err := authenticode.Sum(kernel, sha512.New384())
	if err != nil {
		panic(err)
	}
	return []ccel.Event{
		{Register: 1, Type: 0x80000003, Digest: [48]byte(sum)},
		Hashed(1, 0x80000007, []byte("Calling EFI Application from Boot Option")),
		Hashed(1, 4, make([]byte, 4)),
		Hashed(1, 0x80000007, []byte("Exit Boot Services Invocation")),
		Hashed(1, 0x80000007, []byte("Exit Boot Services Returned with Success")),
		Hashed(2, 6, bzimage.LoadOptions(cmdline, true, false)),
		Hashed(2, 6, initrd),
	}
}
