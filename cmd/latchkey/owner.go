package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/regular"
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
	// MinAPI is the least version of the platform's firmware, "1.55", or "".
	MinAPI  string    `json:"min-api,omitempty"`
	Created time.Time `json:"created"`
	TEK     secretKey `json:"tek"`
	TIK     secretKey `json:"tik"`
	// Verified is the launch digest of the last measurement that verified.
	Verified *verified `json:"verified,omitempty"`
	// Used is set once a secret has been packed: a session is for one launch.
	Used *used `json:"used,omitempty"`
}

type verified struct {
	Digest [32]byte `json:"-"`
	Hex    string   `json:"digest"`
	// Room is the size in bytes of the area that the firmware keeps for secrets; nil if
	// an older latchkey verified.
	Room *uint32 `json:"secret-area,omitempty"`
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

// lock is an owner file that no other latchkey changes meanwhile.
type lock struct {
	file   *os.File
	read   func() // says that the file has been read
	unlock func()
}

// How long a command waits for another command's lock, and how often it looks.
const (
	lockPatience = 10 * time.Second
	lockPause    = 20 * time.Millisecond
)

// store is where an owner file is kept: the file, and the passphrase if it has one.
type store struct {
	name       string
	passphrase *passphrase
	encrypted  bool
	// What was decrypted last: it takes a second.
	sealed, plain []byte
}

// read reads the owner file and refuses one that is not private.
func (st *store) read() (*ownerFile, error) {
	f, err := regular.Open(st.name)
	if err != nil {
		return nil, cli.Fail(cli.ExitUsage, err)
	}
	defer f.Close()
	return st.decode(f)
}

func (st *store) decode(f *os.File) (*ownerFile, error) {
	b, err := io.ReadAll(io.LimitReader(f, maxOwnerFile+1))
	if err != nil {
		return nil, err
	}
	defer clear(b)
	if len(b) > maxOwnerFile {
		return nil, cli.Usagef("%v %s: longer than %d bytes", errOwnerFile, st.name, maxOwnerFile)
	}
	plain := b
	if st.encrypted = isSealed(b); st.encrypted {
		if err := checkPrivate(f); err != nil {
			return nil, err
		}
		if plain, err = st.unseal(b); err != nil {
			return nil, err
		}
	}
	o, err := parseOwner(st.name, plain)
	if err != nil {
		return nil, err
	}
	if err := checkPrivate(f); err != nil {
		o.wipe()
		return nil, err
	}
	return o, nil
}

func parseOwner(name string, b []byte) (*ownerFile, error) {
	var o ownerFile
	if err := json.Unmarshal(b, &o); err != nil {
		// The text of JSON errors can quote what it read: keys.
		return nil, cli.Usagef("%v %s: damaged, or not an owner file", errOwnerFile, name)
	}
	if o.Schema != ownerSchema || len(o.TEK) != 16 || len(o.TIK) != 16 {
		return nil, cli.Usagef("%v %s: its schema is not %s", errOwnerFile, name, ownerSchema)
	}
	damaged := fmt.Errorf("%w %s: damaged", errOwnerFile, name)
	if o.Verified != nil {
		digest, err := hex.DecodeString(o.Verified.Hex)
		if err != nil || len(digest) != len(o.Verified.Digest) {
			return nil, damaged
		}
		copy(o.Verified.Digest[:], digest)
	}
	if _, _, err := parseAPI(o.MinAPI); o.MinAPI != "" && err != nil {
		return nil, damaged
	}
	return &o, nil
}

// update changes the owner file under its lock, so that if two commands use one session
// at once, only one of them succeeds. change gets the current content; if it fails,
// nothing is written.
func (st *store) update(change func(*ownerFile) error) error {
	name, err := filepath.EvalSymlinks(st.name) // replace the file, not a link to it
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	l, err := lockOwner(name)
	if err != nil {
		return err
	}
	defer l.unlock()
	o, err := st.decode(l.file)
	l.read()
	if err != nil {
		return err
	}
	defer o.wipe()
	if err := change(o); err != nil {
		return err
	}
	out, err := cli.PrepareSecret(name)
	if err != nil {
		return err
	}
	defer out.Discard()
	b, err := st.encode(o)
	defer clear(b)
	if err != nil {
		return err
	}
	return out.Commit(b)
}

// encode makes the owner file's content.
func (st *store) encode(o *ownerFile) ([]byte, error) {
	b, err := json.MarshalIndent(o, "", "  ")
	if err != nil || !st.encrypted {
		return b, err
	}
	defer clear(b)
	return st.seal(b)
}

// wipe overwrites what was decrypted.
func (st *store) wipe() { clear(st.plain) }

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
