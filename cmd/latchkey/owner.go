package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/launch"
	"github.com/vmlatch/vmlatch/firmware/sev/session"
)

// ownerFile is what the owner keeps of a session (latchkey.owner/1): mode 0600.
type ownerFile struct {
	Schema   string     `json:"schema"`
	Emulated bool       `json:"emulated"`
	Root     string     `json:"root"` // product line, or the test root
	RootHash string     `json:"root-sha256"`
	CPU0ID   []byte     `json:"cpu0-id,omitempty"`
	Policy   sev.Policy `json:"policy"`
	Created  time.Time  `json:"created"`
	TEK      secretKey  `json:"tek"`
	TIK      secretKey  `json:"tik"`
	// Verified is the launch digest of the last measurement that verified.
	Verified *verified `json:"verified,omitempty"`
	// Used is set once a secret has been packed: a session is for one launch.
	Used *used `json:"used,omitempty"`
}

type verified struct {
	Digest [32]byte `json:"-"`
	Hex    string   `json:"digest"`
}

type used struct {
	At          time.Time `json:"at"`
	Measurement []byte    `json:"measurement"`
}

// secretKey is a key that only the owner file's encoder can print.
type secretKey []byte

// LogValue keeps keys out of logs, String out of text.
func (secretKey) LogValue() slog.Value { return slog.StringValue("[redacted]") }
func (secretKey) String() string       { return "[redacted]" }

// GoString keeps keys out of text.
func (secretKey) GoString() string { return "[redacted]" }

const ownerSchema = "latchkey.owner/1"

const maxOwnerFile = 64 << 10

// readOwner reads an owner file and refuses one that others can read.
func readOwner(name string) (*ownerFile, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, cli.Fail(cli.ExitUsage, err)
	}
	defer f.Close()
	return decodeOwner(f)
}

func decodeOwner(f *os.File) (*ownerFile, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, cli.Usagef("%v %s: not a regular file", errOwnerFile, f.Name())
	}
	if info.Size() > maxOwnerFile {
		return nil, cli.Usagef("%v %s: longer than %d bytes", errOwnerFile, f.Name(), maxOwnerFile)
	}
	var o ownerFile
	if err := json.NewDecoder(f).Decode(&o); err != nil {
		// The text of JSON errors can quote what it read: keys.
		return nil, cli.Usagef("%v %s: damaged, or not an owner file", errOwnerFile, f.Name())
	}
	if o.Schema != ownerSchema || len(o.TEK) != 16 || len(o.TIK) != 16 {
		return nil, cli.Usagef("%v %s: its schema is not %s", errOwnerFile, f.Name(), ownerSchema)
	}
	if o.Verified != nil {
		digest, err := hex.DecodeString(o.Verified.Hex)
		if err != nil || len(digest) != len(o.Verified.Digest) {
			return nil, fmt.Errorf("%w %s: damaged", errOwnerFile, f.Name())
		}
		copy(o.Verified.Digest[:], digest)
	}
	if err := checkPrivate(f, info); err != nil {
		o.wipe()
		return nil, err
	}
	return &o, nil
}

// checkPrivate refuses an owner file that others can read, and one that has a second
// name: only one of the two would know that the session is used up.
func checkPrivate(f *os.File, info os.FileInfo) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Nlink > 1 {
		return cli.Fail(cli.ExitRefused, fmt.Errorf("%w %s: has a second name (a hard link)", errOwnerFile, f.Name()),
			"remove the other name")
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		err := fmt.Errorf("%w %s: others can read it (mode %04o)", errOwnerFile, f.Name(), mode)
		return cli.Fail(cli.ExitRefused, err,
			"chmod 600 "+f.Name(), "if others may have read it, make a new session")
	}
	return nil
}

// updateOwner changes an owner file under its lock, so that if two commands use one
// session at once, only one of them succeeds. change gets the current content; if it
// fails, nothing is written.
func updateOwner(name string, change func(*ownerFile) error) error {
	name, err := filepath.EvalSymlinks(name) // replace the file, not a link to it
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	for {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		again, err := updateLocked(f, name, change)
		_ = f.Close()
		if !again {
			return err
		}
	}
}

func updateLocked(f *os.File, name string, change func(*ownerFile) error) (again bool, err error) {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return errors.Is(err, unix.EINTR), err
	}
	// The previous holder of the lock may have replaced the file.
	mine, err1 := f.Stat()
	there, err2 := os.Stat(name)
	if err := errors.Join(err1, err2); err != nil {
		return false, err
	}
	if !os.SameFile(mine, there) {
		return true, nil
	}
	o, err := decodeOwner(f)
	if err != nil {
		return false, err
	}
	defer o.wipe()
	if err := change(o); err != nil {
		return false, err
	}
	return false, writeOwner(name, o)
}

func writeOwner(name string, o *ownerFile) error {
	b, err := json.MarshalIndent(o, "", "  ")
	defer clear(b)
	if err != nil {
		return err
	}
	return cli.WriteFile(name, b, 0o600)
}

// technology is what the session's policy asks for.
func (o *ownerFile) technology() launch.Technology {
	if o.Policy&sev.PolicyES != 0 {
		return launch.SEVES
	}
	return launch.SEV
}

func (o *ownerFile) wipe() { clear(o.TEK); clear(o.TIK) }

// keys returns the session's keys; wipe them after use.
func (o *ownerFile) keys() session.Keys {
	return session.Keys{TEK: [16]byte(o.TEK), TIK: [16]byte(o.TIK)}
}

// label marks results that an emulated platform took part in.
func label(emulated bool) string {
	if emulated {
		return " (emulated platform: protects nothing)"
	}
	return ""
}
