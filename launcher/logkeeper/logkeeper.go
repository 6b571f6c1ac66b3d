// Package logkeeper writes what a VM says to logs that never exceed their bound. It runs in
// a process of its own, between QEMU's pipes and the files, and lives as long as QEMU does.
package logkeeper

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/vmlatch/vmlatch/launcher/internal/logfile"
)

// Log is a log that is kept.
type Log struct {
	Name string
	From io.Reader // ends with the last process that writes to it
	To   *os.File  // appended to; no other process appends

	held, dropped int64 // bytes
}

// chunk is how much is read at once, in bytes. A log's bound is at least four times that.
const chunk = 12 << 10

// pause is how long more is waited for after each read, as QEMU writes a guest's console byte
// by byte. A pipe holds what comes meanwhile.
const pause = time.Millisecond

// slack is what a file takes beyond its bytes: its first and its last block are not full.
const slack = 2 * 4096

// Run keeps the logs until all have ended. None takes more than most bytes at any time. Nothing
// stops it from reading: what it cannot write, because the disk is full, it drops. If it has
// dropped anything, the last log says how much at its end.
func Run(logs []*Log, most int64) {
	most -= slack
	var wg sync.WaitGroup
	for _, l := range logs {
		wg.Go(func() { l.keep(most) })
	}
	wg.Wait()
	var lost []string
	for _, l := range logs {
		if l.dropped > 0 {
			lost = append(lost, fmt.Sprintf("%d bytes of %s", l.dropped, l.Name))
		}
	}
	if last := len(logs) - 1; len(lost) > 0 {
		logs[last].write([]byte(Remark+strings.Join(lost, ", ")+"\n"), most)
	}
}

// Remark begins the line about what was dropped.
const Remark = "vmlatch: to keep the logs within their bound, the oldest were dropped: "

func (l *Log) keep(most int64) {
	b := make([]byte, chunk)
	for {
		n, err := l.From.Read(b)
		l.write(b[:n], most)
		if err != nil {
			return
		}
		time.Sleep(pause)
	}
}

// write appends to the log, and makes room for that first.
func (l *Log) write(b []byte, most int64) {
	if l.held+int64(len(b)) > most {
		cut, err := logfile.Cut(int(l.To.Fd()), most-most/4)
		if l.dropped += cut; err != nil { // a file system that can do neither
			l.dropped += l.held
			_ = l.To.Truncate(0)
			cut = l.held
		}
		l.held -= cut
	}
	n, _ := l.To.Write(b)
	l.held += int64(n)
	l.dropped += int64(len(b) - n)
}
