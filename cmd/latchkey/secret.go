package main

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/exchange"
	"github.com/vmlatch/vmlatch/firmware/sev/session"
	"github.com/vmlatch/vmlatch/firmware/sev/table"
)

func newSecret(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "secret", Usage: "pack a secret for a launch that verifies",
		Description: `The launch must have been verified with "latchkey verify", or verify now against
the files that you name here. A session gives one packet, then it is used up.
The GUID determines which program in the guest reads the entry; "disk" stands for the
GUID of the disk passphrase, 736869e5-84f0-4973-92ec-06879ce3da0b.

Examples:

   latchkey secret --owner guest.owner --measurement measurement.json \
      --entry disk=passphrase.txt --out packet.json
   latchkey secret --owner guest.owner --measurement - --firmware OVMF.amdsev.fd \
      --entry disk=key --out -`,
		Flags: inputFlags(
			&urfave.StringFlag{Name: "owner", Usage: "your owner `FILE` of the session"},
			&urfave.StringFlag{
				Name:  "measurement",
				Usage: "the host's `FILE` (vmlatch measure), - for standard input",
			},
			&urfave.StringSliceFlag{
				Name:  "entry",
				Usage: "put the content of a file under a GUID: `GUID=FILE`; may be repeated",
			},
			passphraseFlag(), deviceFlag(),
			&urfave.StringFlag{Name: "out", Usage: "write the packet to `FILE`, - for standard output"},
		),
		Action: func(c *urfave.Context) error {
			if _, err := cli.Args(c); err != nil {
				return err
			}
			if err := cli.Need(c, "owner", "measurement", "out"); err != nil {
				return err
			}
			if len(c.StringSlice("entry")) == 0 {
				return cli.WithHint(cli.Usagef("--entry is needed: GUID=FILE"), cli.Examples(c))
			}
			return runSecret(c, s)
		},
	}
}

func runSecret(c *urfave.Context, s *cli.IO) error {
	m, err := readMeasurement(s, c.String("measurement"))
	if err != nil {
		return err
	}
	st := openStore(c, s)
	defer st.wipe()
	var in *inputs
	if c.IsSet("firmware") || c.IsSet("kernel") || c.IsSet("initrd") || c.IsSet("cmdline") {
		o, err := st.read()
		if err != nil {
			return err
		}
		o.wipe()
		if in, err = readInputs(c, string(o.technology())); err != nil {
			return err
		}
	}
	table, err := readEntries(s, c.StringSlice("entry"))
	if err != nil {
		return err
	}
	defer clear(table)
	// Anything that can fail about the output should fail before the session is used up.
	if sameFile(c.String("out"), c.String("owner")) {
		return cli.Usagef("--out %s: is the owner file", c.String("out"))
	}
	out, err := s.PrepareOutput(c.String("out"), 0o644)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	defer out.Discard()
	var packet []byte
	var owner ownerFile
	// The packet is made before the session is marked as used, and handed out
	// after: a failure in between costs a session, never lets one be used twice.
	err = st.update(func(o *ownerFile) (err error) {
		owner.Emulated, owner.Policy = o.Emulated, o.Policy
		packet, err = pack(o, m, in, table)
		o.Used = &used{At: time.Now().UTC(), Measurement: m.Measurement}
		return err
	})
	if err != nil {
		return err
	}
	if err := out.Commit(packet); err != nil {
		return cli.WithHint(err, "the session counts as used: make a new one and start the VM with it")
	}
	s.Say("packed the secret for %s%s; this session is now used up", m.Name, label(owner.Emulated))
	for _, open := range owner.Policy.Open() {
		s.Say("the policy leaves open: %s", open)
	}
	return nil
}

func sameFile(a, b string) bool {
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

func pack(o *ownerFile, m *exchange.Measurement, in *inputs, table []byte) ([]byte, error) {
	if o.Used != nil {
		return nil, cli.Fail(cli.ExitRefused,
			fmt.Errorf("this session has given out its secret already (%s)", o.Used.At.Local().Format(time.RFC3339)),
			"a host that kept the old packet could start the same guest again: make a new session for a new launch")
	}
	var digest [32]byte
	switch {
	case in != nil:
		raw, err := in.digest()
		if err != nil {
			return nil, err
		}
		digest = [32]byte(raw)
		if err := check(o, m, in, digest); err != nil {
			return nil, err
		}
		room, err := in.secretRoom()
		if err == nil {
			err = fits(table, room)
		}
		if err != nil {
			return nil, err
		}
	case o.Verified == nil:
		return nil, cli.Fail(cli.ExitRefused, errors.New("no launch of this session has been verified"),
			`run "latchkey verify" first, or name --firmware and the other measured files here`)
	default:
		digest = o.Verified.Digest
		if room := o.Verified.Room; room != nil {
			if err := fits(table, *room); err != nil {
				return nil, err
			}
		}
	}
	blob, err := sev.ParseMeasurement(m.Measurement)
	if err != nil {
		return nil, err
	}
	keys := o.keys()
	defer keys.Wipe()
	if !keys.Verifies(blob, m.Firmware, o.Policy, digest) {
		return nil, cli.Fail(cli.ExitRefused, errMismatch,
			`this is not the measurement that was verified: run "latchkey verify" on it`)
	}
	if err := checkAPI(o, m); err != nil {
		return nil, err
	}
	var iv [16]byte
	_, _ = rand.Read(iv[:]) // never fails (crypto/rand)
	p, err := keys.Seal(table, iv, blob)
	if err != nil {
		return nil, err
	}
	out, err := json.MarshalIndent(exchange.Packet{
		Schema: exchange.PacketSchema,
		Header: p.Header[:],
		Secret: p.Data,
	}, "", "  ")
	return append(out, '\n'), err
}

// guidNames are short names for common GUIDs.
var guidNames = map[string]sev.GUID{"disk": table.GUIDDiskPassphrase}

// secretRoom is the size in bytes of the area that the firmware keeps for secrets.
func (in *inputs) secretRoom() (uint32, error) {
	area, ok, err := in.image.SecretArea()
	if !ok {
		return 0, err
	}
	return area.Size, err
}

// fits refuses a table that the platform could not put into the guest.
func fits(table []byte, room uint32) error {
	if room == 0 {
		return cli.Usagef("the firmware has no area for secrets: it cannot be given one")
	}
	if len(table) > int(room) {
		return cli.Fail(cli.ExitUsage, fmt.Errorf("the firmware has room for %d bytes of secrets, but these take %d",
			room, len(table)), "put a key there that opens the rest, and the rest on an encrypted disk")
	}
	return nil
}

func readEntries(s *cli.IO, args []string) ([]byte, error) {
	var entries []table.Entry
	defer func() {
		for _, e := range entries {
			clear(e.Data)
		}
	}()
	for _, arg := range args {
		name, file, ok := strings.Cut(arg, "=")
		if !ok || file == "" {
			return nil, cli.Usagef("--entry %q: must be GUID=FILE", arg)
		}
		guid, known := guidNames[name]
		if !known {
			var err error
			if guid, err = sev.ParseGUID(name); err != nil {
				return nil, cli.Fail(cli.ExitUsage, fmt.Errorf("--entry: %w", err), `the only short name is "disk"`)
			}
		}
		data, err := readSecret(file)
		if err != nil {
			return nil, cli.Fail(cli.ExitUsage, err)
		}
		if guid == table.GUIDDiskPassphrase {
			warnOfText(s, file, data)
		}
		entries = append(entries, table.Entry{GUID: guid, Data: data})
	}
	table, err := table.Pack(entries)
	if err != nil {
		return nil, err
	}
	return slices.Clip(table), nil
}

// warnOfText names what an editor, a shell or echo may have put around a passphrase: LUKS
// takes it for a part of the key.
func warnOfText(s *cli.IO, file string, data []byte) {
	for _, odd := range []struct{ bytes, name string }{
		{"\uFEFF", "begins with a byte order mark"},
		{"\xff\xfe", "begins with the mark of UTF-16 (PowerShell's > writes it)"},
		{"\xfe\xff", "begins with the mark of UTF-16"},
	} {
		if bytes.HasPrefix(data, []byte(odd.bytes)) {
			s.Say("warning: %s %s, which is sent as part of the passphrase", file, odd.name)
		}
	}
	for _, odd := range []struct{ bytes, name string }{
		{"\n", "a newline"},
		{"\r", "a carriage return"},
		{" ", "a blank"},
		{"\t", "a tab"},
		{"\x00", "a NUL byte"},
		{"\u00a0", "a no-break space"},
	} {
		if bytes.HasSuffix(data, []byte(odd.bytes)) {
			s.Say("warning: %s ends in %s, which is sent as part of the passphrase", file, odd.name)
		}
	}
}

// readSecret reads a file into one buffer, so that no copy of it stays in memory.
func readSecret(file string) ([]byte, error) {
	f, err := regular.OpenInput(file, session.MaxSecret)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	buf := make([]byte, session.MaxSecret+1)
	n, err := io.ReadFull(f, buf)
	switch {
	case errors.Is(err, io.EOF):
		err = fmt.Errorf("%s: empty", file)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return buf[:n], nil
	}
	clear(buf)
	return nil, err
}
