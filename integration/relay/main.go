// Command relay is a host that carries what a guest and its broker say to each other, keeps what
// the guest said, and can say it again:
//
//	relay LISTEN TO FILE    carry connections of the unix socket LISTEN to the one at TO
//	relay --replay FILE TO  say again what FILE holds, and print what the broker answers
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 4 && os.Args[1] == "--replay":
		err = replay(os.Args[2], os.Args[3])
	case len(os.Args) == 4:
		err = carry(os.Args[1], os.Args[2], os.Args[3])
	default:
		err = errors.New("usage: relay LISTEN TO FILE, or relay --replay FILE TO")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "relay:", err)
		os.Exit(1)
	}
}

func carry(listen, to, file string) error {
	l, err := net.Listen("unix", listen)
	if err != nil {
		return err
	}
	kept, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer kept.Close()
	for {
		guest, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer guest.Close()
			broker, err := net.Dial("unix", to)
			if err != nil {
				return
			}
			defer broker.Close()
			go func() { _, _ = io.Copy(guest, broker) }()
			_, _ = io.Copy(io.MultiWriter(broker, kept), guest)
		}()
	}
}

// replay says every line again, and prints what kind of answer it gets.
func replay(file, to string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	conn, err := net.Dial("unix", to)
	if err != nil {
		return err
	}
	defer conn.Close()
	r := bufio.NewReaderSize(conn, 1<<20)
	for line := range strings.Lines(string(b)) {
		_ = conn.SetDeadline(time.Now().Add(time.Second / 2))
		if _, err := io.WriteString(conn, line); err != nil {
			return err
		}
		answer, err := r.ReadBytes('\n')
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			fmt.Println("nothing")
		case err != nil:
			fmt.Println("it hangs up")
			return nil
		default:
			fmt.Println(describe(answer))
		}
	}
	return nil
}

// describe says what a signed answer is.
func describe(line []byte) string {
	var envelope struct{ PayloadType, Payload string }
	if err := json.Unmarshal(line, &envelope); err != nil {
		return "not a message"
	}
	kind := strings.TrimSuffix(strings.TrimPrefix(envelope.PayloadType, "application/vnd.vmlatch."), "+json")
	payload, err := base64.StdEncoding.DecodeString(envelope.Payload)
	if err != nil {
		return kind
	}
	var said struct{ Reason string }
	if json.Unmarshal(payload, &said) == nil && said.Reason != "" {
		return kind + ": " + said.Reason
	}
	return kind
}
