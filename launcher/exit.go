package launcher

import (
	"encoding/json"

	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/qmp"
)

// Exit is how a guest ended.
type Exit struct {
	Reason string `json:"reason"` // QEMU's ShutdownCause, or "killed"
	Guest  bool   `json:"guest"`  // the guest itself asked for it
}

// ReasonPoweredOff is the reason of a guest that powered off by itself.
const ReasonPoweredOff = "guest-shutdown"

// ReasonKilled is the reason of a QEMU that did not say why it went.
const ReasonKilled = "killed"

// Clean reports whether the guest powered off by itself.
func (e Exit) Clean() bool { return e.Reason == ReasonPoweredOff }

// ReadExit reads how a VM's guest ended from its event log. A log that does not end
// with SHUTDOWN belongs to a QEMU that was killed or crashed.
func ReadExit(d *rundir.Dir) (Exit, error) {
	log, err := d.OpenLog(rundir.EventsLog, false)
	if err != nil {
		return Exit{}, err
	}
	defer log.Close()
	exit, _, err := Ending(log)
	return exit, err
}

func exitOf(events []Event) Exit {
	exit := Exit{Reason: ReasonKilled}
	for _, e := range events {
		switch e.Name {
		case qmp.EventShutdown:
			exit = Exit{}
			if json.Unmarshal(e.Data, &exit) != nil || exit.Reason == "" {
				exit.Reason = "unknown"
			}
		case qmp.EventGuestPanicked:
			return Exit{Reason: "guest-panic", Guest: true}
		}
	}
	return exit
}
