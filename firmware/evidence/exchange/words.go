package exchange

import (
	"errors"
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/smallfmt"
)

// ErrWords is wrapped by errors about latch words of a command line.
var ErrWords = errors.New("command line")

// maxCmdline is the shortest command line that Linux may have cut off (COMMAND_LINE_SIZE on x86):
// what was measured may be longer than what the kernel shows.
const maxCmdline = 2048

// Sources of secrets.
const (
	FromEvidence = "evidence"
	FromInjected = "injected"
)

// Words are what a guest's measured command line says of its broker.
type Words struct {
	Key     Key    // latch.key
	Name    string // latch.name: of the policy
	Broker  Way    // latch.broker: the way to the broker; zero for none
	Source  string // latch.source: FromEvidence or FromInjected
	NoClose bool   // latch.close=no: the kernel cannot close the launch (RTMR3)
	KEM     string // latch.kem
	// Host is latch.trust=host: the guest trusts its host, and proves itself by the TPM that the
	// host has made. Without the word no guest does.
	Host bool
}

// Port is the name of the virtio port that leads to a guest's broker.
const Port = "org.vmlatch.broker.0"

// Way is how a guest reaches its broker.
type Way struct {
	Network string // port, vsock or tcp
	Host    []byte // of tcp: an address of IP, 4 or 16 bytes
	CID     uint32 // of vsock
	Port    uint32 // of vsock and tcp
	text    string
}

// String is the way as ParseWay read it.
func (w Way) String() string { return w.text }

// ParseWay reads port, vsock:CID:PORT or tcp:ADDRESS:PORT. A guest that has no secret yet has no
// resolver either, so an address is one of IP.
func ParseWay(text string) (w Way, err error) {
	network, rest, _ := strings.Cut(text, ":")
	w.Network, w.text = network, text
	switch network {
	case "port":
		if text == "port" {
			return w, nil
		}
	case "vsock":
		cid, port, ok := strings.Cut(rest, ":")
		c, err1 := strconv.ParseUint(cid, 10, 32)
		p, err2 := strconv.ParseUint(port, 10, 32)
		if ok && err1 == nil && err2 == nil && p > 0 {
			w.CID, w.Port = uint32(c), uint32(p)
			return w, nil
		}
	case "tcp":
		i := strings.LastIndexByte(rest, ':')
		p, err := strconv.ParseUint(rest[i+1:], 10, 16)
		if i >= 0 && err == nil && p > 0 {
			w.Host, w.Port = parseIP(rest[:i]), uint32(p)
			if w.Host != nil {
				return w, nil
			}
		}
	}
	return Way{}, smallfmt.Errorf("%w: latch.broker must be port, vsock:CID:PORT or tcp:ADDRESS:PORT", ErrWords)
}

// parseIP reads an address of IPv4, or one of IPv6 in brackets (RFC 4291, section 2.2); nil if it
// is neither. Package net/netip would be a twentieth of an agent.
func parseIP(text string) []byte {
	if inner, ok := strings.CutPrefix(text, "["); ok && strings.HasSuffix(inner, "]") {
		return parseIPv6(strings.TrimSuffix(inner, "]"))
	}
	parts := strings.Split(text, ".")
	addr := make([]byte, 4)
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 8)
		if len(parts) != len(addr) || err != nil || len(p) > 1 && p[0] == '0' {
			return nil
		}
		addr[i] = byte(n)
	}
	return addr
}

func parseIPv6(text string) []byte {
	addr := make([]byte, 0, 16)
	read := func(text string) bool {
		if text == "" {
			return true
		}
		for part := range strings.SplitSeq(text, ":") {
			n, err := strconv.ParseUint(part, 16, 16)
			if err != nil || len(part) > 4 || len(addr) == 16 {
				return false
			}
			addr = append(addr, byte(n>>8), byte(n))
		}
		return true
	}
	before, behind, gap := strings.Cut(text, "::")
	if !read(before) {
		return nil
	}
	at := len(addr)
	if !gap {
		if at != 16 {
			return nil
		}
		return addr
	}
	if !read(behind) || len(addr) > 14 { // the gap stands for one field at least
		return nil
	}
	full := make([]byte, 16)
	copy(full, addr[:at])
	copy(full[16-(len(addr)-at):], addr[at:])
	return full
}

const wordPrefix = "latch."

// HasWords reports whether a command line has a word of latch, well-formed or not.
func HasWords(line string) bool {
	for _, w := range split(line) {
		if strings.HasPrefix(w, wordPrefix) {
			return true
		}
	}
	return false
}

// split cuts a command line into words as the kernel does: at white space outside of double
// quotes, up to a word that is "--" (lib/cmdline.c, next_arg; init/main.c). Words with quotes are
// left out: what they say differs between readers.
func split(line string) (words []string) {
	var word strings.Builder
	in, has := false, false
	flush := func() bool {
		w := word.String()
		word.Reset()
		if w == "--" && !has {
			return false
		}
		if w != "" && !has {
			words = append(words, w)
		}
		has = false
		return true
	}
	for _, c := range []byte(line) {
		switch {
		case c == '"':
			in, has = !in, true
		case !in && (c == ' ' || c >= '\t' && c <= '\r'):
			if !flush() {
				return words
			}
			continue
		}
		word.WriteByte(c)
	}
	flush()
	return words
}

// ParseWords reads the latch words of a guest's command line. Each may stand there once; unknown
// and malformed ones are errors, and latch.key and latch.name are required.
func ParseWords(line string) (*Words, error) {
	line = strings.TrimSuffix(line, "\n")
	if len(line) >= maxCmdline {
		return nil, smallfmt.Errorf("%w: %d bytes: the kernel cuts it off at %d", ErrWords, len(line), maxCmdline)
	}
	w := &Words{Source: FromEvidence, KEM: Hybrid}
	seen := map[string]bool{}
	for _, word := range split(line) {
		rest, ok := strings.CutPrefix(word, wordPrefix)
		if !ok {
			continue
		}
		key, value, _ := strings.Cut(rest, "=")
		if seen[key] {
			return nil, smallfmt.Errorf("%w: latch.%s stands there twice", ErrWords, smallfmt.Escape(key))
		}
		seen[key] = true
		if err := w.set(key, value); err != nil {
			return nil, err
		}
	}
	for _, key := range []string{"key", "name"} {
		if !seen[key] {
			return nil, smallfmt.Errorf("%w: latch.%s is missing", ErrWords, key)
		}
	}
	if w.Source == FromEvidence && !seen["broker"] {
		return nil, smallfmt.Errorf("%w: latch.broker is missing", ErrWords)
	}
	if w.Host && w.Source == FromInjected {
		return nil, smallfmt.Errorf("%w: latch.trust=host and latch.source=injected: one of them", ErrWords)
	}
	return w, nil
}

func (w *Words) set(key, value string) (err error) {
	oneOf := func(list ...string) error {
		for _, x := range list {
			if value == x {
				return nil
			}
		}
		return smallfmt.Errorf("%w: latch.%s must be %s", ErrWords, key, strings.Join(list, " or "))
	}
	switch key {
	case "key":
		if w.Key, err = ParseKey(value); err != nil {
			err = smallfmt.Errorf("%w: latch.key: %w", ErrWords, err)
		}
	case "name":
		if w.Name = value; !IsName(value) {
			err = smallfmt.Errorf("%w: latch.name must be a policy's name", ErrWords)
		}
	case "broker":
		w.Broker, err = ParseWay(value)
	case "source":
		w.Source, err = value, oneOf(FromEvidence, FromInjected)
	case "close":
		w.NoClose, err = value == "no", oneOf("no", "yes")
	case "trust":
		w.Host, err = true, oneOf("host")
	case "kem":
		w.KEM, err = value, oneOf(Hybrid, X25519)
	default:
		err = smallfmt.Errorf("%w: latch.%s is unknown", ErrWords, smallfmt.Escape(key))
	}
	return err
}
