package broker

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"time"
)

// Errors of a person's decisions.
var (
	ErrNoRequest = errors.New("no such request waits")
	ErrChanged   = errors.New("the request is not the one that was shown")
)

// Waiting are the requests that a person has not decided on, the oldest first, and those that were
// approved and not fetched yet.
func (b *Broker) Waiting() (list []*Request) {
	now := b.now()
	b.store.view(func(*state) {
		b.waiting.expire(now)
		for _, r := range b.waiting.list {
			x := *r
			switch r.answer {
			case approved:
				x.Answer = "approved"
			case refused:
				x.Answer = "denied"
			}
			list = append(list, &x)
		}
	})
	slices.SortFunc(list, func(x, y *Request) int { return int(x.Number) - int(y.Number) })
	return list
}

// Shown is a hash of what a person sees of a request.
func (r *Request) Shown() string {
	x := *r
	x.Seen, x.Answer = x.Since, "" // which change while it is looked at
	b, err := json.Marshal(&x)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Decide approves or refuses a request. shown, if not "", is the hash of what was seen of it.
func (b *Broker) Decide(number uint64, yes bool, shown string) error {
	var refusal error
	err := b.store.do(func(t *tx) {
		b.waiting.expire(t.now)
		r := b.waiting.numbered(number)
		switch {
		case r == nil || r.answer != none:
			refusal = ErrNoRequest
			return
		case shown != "" && shown != r.Shown():
			refusal = ErrChanged
			return
		}
		kind := evRefuse
		r.answer, r.at = refused, t.now
		if yes {
			kind, r.answer = evApprove, approved
		}
		t.add(&Event{
			Event: kind, Policy: r.Policy, Technology: r.Technology, Emulated: r.Emulated,
			Trust: r.Trust, Secrets: r.Secrets,
			Chip: r.Chip, Digest: r.Digest, Request: r.Number,
		})
		t.undo = append(t.undo, func() { r.answer = none })
	})
	return errors.Join(refusal, err)
}

// Head is how far the audit goes: kept elsewhere, it shows a truncated one.
func (b *Broker) Head() (h Head) {
	b.store.view(func(s *state) { h = s.head })
	return h
}

// Command is what an owner's command asks of a running broker, as a line of JSON.
type Command struct {
	Do      string `json:"do"`
	Request uint64 `json:"request,omitempty"`
	Shown   string `json:"shown,omitempty"`
}

// Commands.
const (
	DoStatus  = "status"
	DoApprove = "approve"
	DoDeny    = "deny"
	DoPage    = "page" // a new link to the approvals page
)

// Reply answers a command, as a line of JSON.
type Reply struct {
	Schema   string     `json:"schema"`
	Error    string     `json:"error,omitempty"`
	Broker   string     `json:"broker,omitempty"` // its key
	Policies []string   `json:"policies,omitempty"`
	Head     *Head      `json:"audit-head,omitempty"`
	Requests []*Request `json:"requests"`
	Page     string     `json:"page,omitempty"`
}

// ReplySchema names the format of replies.
const ReplySchema = "latchkey.requests/1"

// do carries out a command.
func (b *Broker) do(c *Command, page *Page) *Reply {
	r := &Reply{Schema: ReplySchema, Requests: []*Request{}}
	var err error
	switch c.Do {
	case DoStatus:
		h := b.Head()
		r.Broker, r.Policies, r.Head = b.Key().String(), b.rules.Load().names(), &h
		r.Requests = append(r.Requests, b.Waiting()...)
	case DoApprove, DoDeny:
		err = b.Decide(c.Request, c.Do == DoApprove, c.Shown)
	case DoPage:
		if page == nil {
			err = errors.New("the broker has no approvals page: start it with --approve")
		} else {
			r.Page = page.Link()
		}
	default:
		err = errors.New("unknown command: broker and command are of different versions")
	}
	if err != nil {
		r.Error = err.Error()
	}
	return r
}

// maxCommand bounds a command, in bytes.
const maxCommand = 4 << 10

// ServeControl carries out the commands of whoever may connect, a line each, until the listener is
// closed.
func (b *Broker) ServeControl(l net.Listener, page *Page) {
	places := make(chan struct{}, maxControl)
	for {
		conn, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(100 * time.Millisecond) // too many open files: others must end first
			continue
		}
		places <- struct{}{}
		go func() {
			defer func() { <-places }()
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(messageTime))
			line, err := bufio.NewReader(io.LimitReader(conn, maxCommand)).ReadBytes('\n')
			var c Command
			if err == nil {
				err = json.Unmarshal(line, &c)
			}
			r := &Reply{Schema: ReplySchema, Requests: []*Request{}, Error: "not a command"}
			if err == nil {
				r = b.do(&c, page)
			}
			if out, err := json.Marshal(r); err == nil {
				_, _ = conn.Write(append(out, '\n'))
			}
		}()
	}
}

// maxControl is how many commands are answered at once.
const maxControl = 16

// ControlSocket is where a broker listens for commands, in its state directory.
const ControlSocket = "control.sock"

// Ask sends a command to the broker of a state directory.
func Ask(ctx context.Context, state string, c *Command) (*Reply, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(state, ControlSocket))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	_ = conn.SetDeadline(time.Now().Add(messageTime))
	b, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(append(b, '\n')); err != nil {
		return nil, err
	}
	var r Reply
	if err := json.NewDecoder(io.LimitReader(conn, 1<<20)).Decode(&r); err != nil {
		return nil, fmt.Errorf("the broker's reply: %w", err)
	}
	if r.Error != "" {
		return nil, errors.New(r.Error)
	}
	return &r, nil
}
