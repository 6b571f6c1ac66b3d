package launcher

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"

	"github.com/vmlatch/vmlatch/firmware/sev"
)

// PlatformError is an answer of QEMU's or the platform's that says no.
type PlatformError struct {
	Name string
	What string
	Err  error
	// Status is the platform firmware's code, if there was one.
	Status sev.Status
}

func (e *PlatformError) Error() string { return fmt.Sprintf("%s: %s: %v", e.Name, e.What, e.Err) }

// Unwrap returns the cause.
func (e *PlatformError) Unwrap() error { return e.Err }

// fwError finds the firmware's status code in QEMU's words. Patterns are compiled
// when an error has come: most starts never need one.
const fwError = `fw_error='?(?:0x)?([0-9a-f]+)`

func platformError(name, what string, err error) error {
	p := &PlatformError{Name: name, What: what, Err: err}
	if m := regexp.MustCompile(fwError).FindStringSubmatch(err.Error()); m != nil {
		if n, e := strconv.ParseUint(m[1], 10, 32); e == nil {
			p.Status = sev.Status(n)
		}
	}
	return p
}

// Advice says what an error of QEMU's means and what to do.
type Advice struct {
	Pattern string // regular expression
	Cause   string
	Fix     string
	Refused bool // the platform did not accept the owner's or host's claim
	Host    bool // this host lacks something
}

// Advise explains an error, if it is one of QEMU's known ones.
func Advise(err error) (Advice, bool) {
	text := ""
	var start *StartError
	var platform *PlatformError
	switch {
	case errors.As(err, &start):
		text = start.Error()
	case errors.As(err, &platform):
		text = platform.Error()
	default:
		return Advice{}, false
	}
	for _, a := range adviceTable {
		if regexp.MustCompile(a.Pattern).MatchString(text) {
			return a, true
		}
	}
	return Advice{}, false
}
