package qmp_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"os"

	"github.com/vmlatch/vmlatch/qmp"
)

// A command is a value; events come through a subscription.
func Example() {
	ctx := context.Background()
	conn, theirs, err := qmp.Pair() // QEMU inherits theirs: -chardev socket,id=qmp,fd=3 -mon qmp,mode=control
	if err != nil {
		log.Fatal(err)
	}
	go playQEMU(theirs)

	c, err := qmp.NewConn(ctx, conn, qmp.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	fmt.Println("QEMU", c.Version())

	events := c.Subscribe(16, qmp.EventResume, qmp.EventShutdown)
	defer events.Close()
	if err := (qmp.Cont{}).Execute(ctx, c); err != nil {
		log.Fatal(err)
	}
	e, err := events.Next(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(e.Name)
	status, err := qmp.QueryStatus{}.Execute(ctx, c)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(status.Status)
	// Output:
	// QEMU 11.1.0
	// RESUME
	// running
}

// playQEMU answers as a QEMU that lets its guest run.
func playQEMU(f *os.File) {
	conn, err := net.FileConn(f)
	_ = f.Close()
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	answers := map[string]string{
		"query-status": `{"return": {"running": true, "status": "running"}, "id": %d}`,
		"cont": `{"timestamp": {"seconds": 1, "microseconds": 0}, "event": "RESUME"}` + "\n" +
			`{"return": {}, "id": %d}`,
	}
	fmt.Fprintln(conn, `{"QMP": {"version": {"qemu": {"major": 11, "minor": 1, "micro": 0}}, "capabilities": []}}`)
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		var command struct {
			Execute string `json:"execute"`
			ID      int    `json:"id"`
		}
		if json.Unmarshal(lines.Bytes(), &command) != nil {
			return
		}
		answer := answers[command.Execute]
		if answer == "" {
			answer = `{"return": {}, "id": %d}`
		}
		fmt.Fprintf(conn, answer+"\n", command.ID)
	}
}
