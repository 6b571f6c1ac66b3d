package broker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/vmlatch/vmlatch/firmware/regular"
)

// Files of a state directory.
const (
	auditFile = "audit.jsonl"
	stateFile = "state.json"
	lockFile  = "lock"
)

const stateSchema = "latch-state/1"

// kept is state.json: how far the audit went when a decision was last answered.
type kept struct {
	Schema  string            `json:"schema"`
	Head    Head              `json:"head"`
	Request uint64            `json:"request"` // the last number
	Served  map[string]string `json:"served"`  // survives a loss of the audit that the owner accepts
	Marks   map[string]uint64 `json:"marks"`
}

// store decides and remembers.
type store struct {
	dir   string
	audit *os.File
	size  int64 // of the audit's whole lines
	lock  io.Closer
	now   func() time.Time
	notes []string // of what was mended when it was opened
	// broken, if not nil, is why nothing can be decided any more.
	broken error

	mu    sync.Mutex
	state *state

	jobs chan *job
	once sync.Once
	done chan struct{} // nothing more is decided
	idle chan struct{} // nothing more is written
}

// job is a decision.
type job struct {
	run  func(*tx)
	done chan error
}

// tx is a batch of decisions that become durable together.
type tx struct {
	*state
	now   time.Time
	lines []byte
	undo  []func()
}

// add notes an event, which is durable once the batch is.
func (t *tx) add(e *Event) {
	e.At = t.now
	line, h := encodeEvent(e, t.head)
	t.lines = append(append(t.lines, line...), '\n')
	t.undo = append(t.undo, t.apply(e, h))
}

// openStore reads a state directory, which one process uses at a time.
func openStore(dir string, acceptLoss bool, now func() time.Time) (s *store, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s = &store{dir: dir, state: newState(), now: now, jobs: make(chan *job)}
	s.done, s.idle = make(chan struct{}), make(chan struct{})
	if s.lock, err = lockDir(filepath.Join(dir, lockFile)); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	if err := s.load(acceptLoss); err != nil {
		if s.audit != nil {
			_ = s.audit.Close()
		}
		_ = s.lock.Close()
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	go s.work()
	return s, nil
}

func (s *store) path(name string) string { return filepath.Join(s.dir, name) }

// load reads the audit, compares it with what was remembered of it, and opens it for appending.
func (s *store) load(acceptLoss bool) (err error) {
	k, err := readKept(s.dir)
	if err != nil {
		if !acceptLoss || !errors.Is(err, ErrAudit) {
			return err
		}
		k = &kept{}
		s.notes = append(s.notes, stateFile+" was damaged, which was accepted: it is made anew from the audit")
	}
	flags := os.O_RDWR | os.O_CREATE | os.O_APPEND
	if s.audit, err = os.OpenFile(s.path(auditFile), flags, 0o600); err != nil {
		return err
	}
	h, whole, err := ReadAudit(s.audit, func(e *Event) error {
		s.state.apply(e, Head{})
		return nil
	}, k.Head)
	switch {
	case err != nil && (!errors.Is(err, ErrAudit) || !acceptLoss):
		return err
	case err != nil:
		return s.restart(k)
	}
	info, err := s.audit.Stat()
	if err != nil {
		return err
	}
	if info.Size() > whole { // a decision that was never answered
		s.notes = append(s.notes, "the last line of the audit was never finished: it is removed")
		if err := s.audit.Truncate(whole); err != nil {
			return err
		}
	}
	s.size, s.state.head = whole, h
	s.recall(k)
	return nil
}

// recall takes what state.json remembers beyond the audit.
func (s *store) recall(k *kept) {
	s.state.request = max(s.state.request, k.Request)
	for key, launch := range k.Served {
		if s.state.served[key] == "" {
			s.state.served[key] = launch
		}
	}
	for key, n := range k.Marks {
		s.state.marks[key] = max(s.state.marks[key], n)
	}
}

// restart begins a new audit behind the one that was lost, which is kept aside.
func (s *store) restart(k *kept) error {
	aside := s.path(fmt.Sprintf("audit-lost-%s.jsonl", s.now().UTC().Format("20060102T150405.000000000")))
	if err := os.Rename(s.path(auditFile), aside); err != nil {
		return err
	}
	_ = s.audit.Close()
	var err error
	if s.audit, err = os.OpenFile(s.path(auditFile), os.O_RDWR|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600); err != nil {
		return err
	}
	s.state, s.size = newState(), 0
	s.recall(k)
	s.state.head = k.Head
	s.notes = append(s.notes, "the audit was lost, which was accepted: its rest is in "+aside)
	t := &tx{state: s.state, now: s.now().UTC()}
	t.add(&Event{Event: evLost, Lost: &k.Head})
	return s.commit(t)
}

// Known is how far the audit of a state directory has gone, as state.json remembers it; zero if
// there is none.
func Known(dir string) (Head, error) {
	k, err := readKept(dir)
	if err != nil {
		return Head{}, err
	}
	return k.Head, nil
}

func readKept(dir string) (*kept, error) {
	k := &kept{}
	b, err := regular.Read(filepath.Join(dir, stateFile), 16<<20)
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, k); err != nil || k.Schema != stateSchema {
		return nil, fmt.Errorf("%s: is damaged: %w", stateFile, ErrAudit)
	}
	return k, nil
}

// do runs a decision and returns once it is durable. Without events nothing is written.
func (s *store) do(run func(*tx)) error {
	j := &job{run, make(chan error, 1)}
	select {
	case s.jobs <- j:
		return <-j.done
	case <-s.done:
		return errors.New("the broker is stopping")
	}
}

// maxBatch bounds how many decisions become durable together.
const maxBatch = 256

// work makes the decisions. Those that wait while others are written become durable together.
func (s *store) work() {
	defer close(s.idle)
	for {
		var batch []*job
		select {
		case j := <-s.jobs:
			batch = append(batch, j)
		case <-s.done:
			return
		}
		for more := true; more && len(batch) < maxBatch; {
			select {
			case j := <-s.jobs:
				batch = append(batch, j)
			default:
				more = false
			}
		}
		s.mu.Lock()
		t := &tx{state: s.state, now: s.now().UTC()}
		for _, j := range batch {
			j.run(t)
		}
		s.mu.Unlock()
		err := s.commit(t)
		for _, j := range batch {
			j.done <- err
		}
	}
}

// commit makes a batch durable: the audit, then state.json, then its directory. If the audit
// cannot be written, nothing of the batch counts. If only state.json cannot, all of it does, but
// nothing is answered: who asks again is told.
func (s *store) commit(t *tx) error {
	if len(t.lines) == 0 {
		return nil
	}
	if s.broken != nil {
		s.takeBack(t)
		return s.broken
	}
	_, err := s.audit.Write(t.lines)
	if err == nil {
		err = s.audit.Sync()
	}
	if err != nil {
		s.takeBack(t)
		if e := s.audit.Truncate(s.size); e != nil { // what was half written is behind what is whole
			s.broken = fmt.Errorf("the audit cannot be written any more: %w", e)
		}
		return err
	}
	s.size += int64(len(t.lines))
	return s.keep()
}

func (s *store) takeBack(t *tx) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, undo := range slices.Backward(t.undo) {
		undo()
	}
}

// keep replaces state.json.
func (s *store) keep() error {
	s.mu.Lock()
	b, err := json.Marshal(&kept{
		Schema: stateSchema, Head: s.state.head, Request: s.state.request, Served: s.state.served, Marks: s.state.marks,
	})
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return replaceFile(s.dir, stateFile, append(b, '\n'))
}

// replaceFile replaces a file of a directory that only this process writes to, and is durable.
func replaceFile(dir, name string, b []byte) error {
	next := filepath.Join(dir, name+".new")
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(next)
		return err
	}
	if err := os.Rename(next, filepath.Join(dir, name)); err != nil {
		return err
	}
	return syncDir(dir)
}

// view looks at the state.
func (s *store) view(look func(*state)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	look(s.state)
}

// close ends the store. What was decided is durable already.
func (s *store) close() (err error) {
	s.once.Do(func() {
		close(s.done)
		<-s.idle
		err = errors.Join(s.audit.Close(), s.lock.Close())
	})
	return err
}
