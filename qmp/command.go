package qmp

import (
	"context"
	"encoding/json"
	"os"
)

// The commands of this package are those that go-qemu's package raw does not know, or not as QEMU
// has them today, and the few that decide over a launch; for others use that, on [Conn.Monitor].

// Executor runs commands: a *Conn, or what a test puts in its place.
type Executor interface {
	Execute(ctx context.Context, command string, args, out any) error
}

// QueryStatus asks for the run state (qapi/run-state.json).
type QueryStatus struct{}

// Status is the answer to QueryStatus.
type Status struct {
	Running bool   `json:"running"`
	Status  string `json:"status"` // "prelaunch", "running", "paused", "shutdown", …
}

// StatusPaused is the Status of a guest that ran and was stopped by a monitor's user.
const StatusPaused = "paused"

// Execute runs query-status.
func (QueryStatus) Execute(ctx context.Context, e Executor) (s Status, err error) {
	err = e.Execute(ctx, "query-status", nil, &s)
	return s, err
}

// Cont lets the guest run.
type Cont struct{}

// Execute runs cont.
func (Cont) Execute(ctx context.Context, e Executor) error { return e.Execute(ctx, "cont", nil, nil) }

// Screendump writes a picture of the screen to a file, in ppm or, since QEMU 7.1, png.
type Screendump struct {
	Filename string `json:"filename"`
	Format   string `json:"format,omitempty"`
}

// Execute runs screendump.
func (s Screendump) Execute(ctx context.Context, e Executor) error {
	return e.Execute(ctx, "screendump", s, nil)
}

// CPU is one of a guest's CPUs.
type CPU struct {
	Index  int `json:"cpu-index"`
	Thread int `json:"thread-id"`
}

// QueryCPUsFast asks for the guest's CPUs, without stopping them.
type QueryCPUsFast struct{}

// Execute runs query-cpus-fast.
func (QueryCPUsFast) Execute(ctx context.Context, e Executor) (cpus []CPU, err error) {
	err = e.Execute(ctx, "query-cpus-fast", nil, &cpus)
	return cpus, err
}

// AddFD adds a file to a set that options can name as /dev/fdset/N.
type AddFD struct {
	Set    int      `json:"fdset-id"`
	Opaque string   `json:"opaque,omitempty"`
	File   *os.File `json:"-"`
}

// Execute runs add-fd and returns QEMU's number for the file.
func (a AddFD) Execute(ctx context.Context, c *Conn) (fd int, err error) {
	var out struct {
		FD int `json:"fd"`
	}
	err = c.ExecuteFile(ctx, "add-fd", a, &out, a.File)
	return out.FD, err
}

// QueryQMPSchema asks for the description of all commands and events.
type QueryQMPSchema struct{}

// Execute runs query-qmp-schema and returns its entries undecoded.
func (QueryQMPSchema) Execute(ctx context.Context, e Executor) (entries []json.RawMessage, err error) {
	err = e.Execute(ctx, "query-qmp-schema", nil, &entries)
	return entries, err
}

// QOMListProperties asks for the properties of a type.
type QOMListProperties struct {
	Type string `json:"typename"`
}

// Execute runs qom-list-properties and returns their names.
func (q QOMListProperties) Execute(ctx context.Context, e Executor) (names []string, err error) {
	var list []struct {
		Name string `json:"name"`
	}
	err = e.Execute(ctx, "qom-list-properties", q, &list)
	for _, l := range list {
		names = append(names, l.Name)
	}
	return names, err
}
