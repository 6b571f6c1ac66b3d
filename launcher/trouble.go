package launcher

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/qmp"
)

// Events that say what is wrong (qapi/block-core.json, net.json, run-state.json).
const (
	eventIOError      = "BLOCK_IO_ERROR"
	eventDisconnected = "NETDEV_STREAM_DISCONNECTED" // since QEMU 8.0
	eventPanicked     = "GUEST_PANICKED"
	eventWatchdog     = "WATCHDOG"
)

// Trouble is what is wrong with a running VM, by its last events, a sentence each: what a person
// must mend before it goes on as before. A guest that was let go on has put its disks right.
func Trouble(events []Event, r *rundir.Record) (list []string) {
	var disks, others []string
	add := func(to *[]string, text string) {
		if !slices.Contains(*to, text) {
			*to = append(*to, text)
		}
	}
	for _, e := range events {
		var data struct {
			Node    string `json:"node-name"`
			Action  string `json:"action"`
			NoSpace bool   `json:"nospace"`
			Reason  string `json:"reason"`
			Netdev  string `json:"netdev-id"`
		}
		if json.Unmarshal(e.Data, &data) != nil {
			continue
		}
		switch e.Name {
		case qmp.EventResume:
			disks = nil
		case eventIOError:
			text := data.Reason + ": " + diskOf(r, data.Node)
			if data.NoSpace {
				text = "the host has no room left for " + diskOf(r, data.Node)
			}
			if data.Action == "stop" {
				text += `; make room, then "vmlatch resume"`
			}
			add(&disks, text)
		case eventDisconnected:
			add(&others, noNetwork(data.Netdev))
		case eventPanicked:
			add(&others, "the guest's kernel has panicked")
		case eventWatchdog:
			add(&others, "the guest hung: its watchdog was not fed (action "+data.Action+")")
		}
	}
	return append(disks, others...)
}

// LostDisks says which devices that a running VM has as disks are there no more, a sentence each.
// QEMU itself does not notice: reads behind the end of a device give zeros.
func LostDisks(r *rundir.Record) (list []string) {
	for _, d := range r.Disks {
		if d.Device == "" {
			continue
		}
		if _, err := os.Stat(filepath.Join("/sys/dev/block", d.Device)); errors.Is(err, fs.ErrNotExist) {
			list = append(list, d.Image+" has gone: the guest reads zeros from it, and what it writes is lost")
		}
	}
	return list
}

// Gone says what a VM lacks that has lost a helper, by that helper's role.
func Gone(role string) string {
	switch {
	case role == plan.RoleTPM:
		return "its TPM has gone: the guest's next reset ends QEMU"
	case role == plan.RoleKeeper:
		return "the keeper of its logs has gone: they say nothing more"
	case strings.HasPrefix(role, "net"):
		return noNetwork(role)
	default:
		return "the program that served " + role + " has gone"
	}
}

func noNetwork(id string) string {
	return fmt.Sprintf("network %s has gone with the program that carried it", id)
}

// diskOf is the image of a disk by its node's name.
func diskOf(r *rundir.Record, node string) string {
	digits, _, _ := strings.Cut(strings.TrimPrefix(node, "disk"), "-")
	if i, err := strconv.Atoi(digits); err == nil && i >= 0 && i < len(r.Disks) {
		return r.Disks[i].Image
	}
	return "a disk"
}
